// Says of each policy file named whether the C++ loader takes it: one line a file, "loaded", or
// "refused" or "unreadable" and why. The Python tests compare it with the Python loader.
#include <cstdio>

#include "../policy_file.hpp"

int main(int argc, char** argv) {
  using Outcome = sorl::PolicyFile::Outcome;
  for (int i = 1; i < argc; ++i) {
    const sorl::PolicyFile::Result result = sorl::PolicyFile::load(argv[i]);
    const char* const word = result.outcome == Outcome::loaded     ? "loaded"
                             : result.outcome == Outcome::refused ? "refused"
                                                                  : "unreadable";
    std::printf("%s %s\n", word, result.message.c_str());
  }
}
