// SHA-256 (FIPS 180-4), portable: the digest of a policy file is checked once, when it is loaded.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace sorl {

class Sha256 {
 public:
  void update(const void* data, std::size_t size);

  /// The digest of all bytes so far as 64 lower-case hexadecimal digits. Call once, at the end.
  std::string hex();

 private:
  void block(const unsigned char* bytes);

  std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> pending_{};
  std::uint64_t length_ = 0;
};

}  // namespace sorl
