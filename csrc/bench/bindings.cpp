// sorl_fast._bench: what the benchmarks time a machine and a session with. A robot imports none of it.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../pages.hpp"
#include "../parse.hpp"
#include "../placement.hpp"
#include "../plain_call.hpp"
#include "../without_gil.hpp"
#include "bench.hpp"

namespace py = pybind11;

namespace sorl::bench {
namespace {

using Clock = std::chrono::steady_clock;
using Floats = py::array_t<float, py::array::c_style>;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Runs `measure` on `threads` threads at once and adds their rates up.
template <class Measure>
double rate(int threads, Measure measure) {
  if (threads < 1) throw py::value_error("threads is " + std::to_string(threads) + ", but must be at least 1");
  std::vector<double> rates(static_cast<std::size_t>(threads));
  std::vector<std::exception_ptr> errors(rates.size());
  const auto run = [&](int t) noexcept {
    try {
      rates[t] = measure();
    } catch (...) {
      errors[t] = std::current_exception();
    }
  };
  without_gil([&] {
    std::vector<std::thread> team;
    try {
      for (int t = 1; t < threads; ++t) team.emplace_back(run, t);
    } catch (...) {
      errors[0] = std::current_exception();
    }
    if (errors[0] == nullptr) run(0);
    for (std::thread& t : team) t.join();
  });
  for (const std::exception_ptr& error : errors)
    if (error != nullptr) std::rethrow_exception(error);
  double sum = 0;
  for (const double r : rates) sum += r;
  return sum;
}

// The machine's limits are those of its fastest instruction set, whatever SORL_CPU_ISA says.
const Loops& fastest(Precision precision) { return find_loops(available_isas(precision).back(), precision); }

double flop_rate(const std::string& precision, const std::optional<std::string>& isa, int threads,
                 double seconds) {
  const Precision p = parse_precision(precision);
  const Loops& loops = isa ? find_loops(parse_isa(p, isa), p) : fastest(p);
  return rate(threads, [&] {
    if (loops.enter != nullptr) loops.enter();
    double flop = 0, best = 0;
    const auto start = Clock::now();
    do {
      const auto round = Clock::now();
      flop = loops.burn(20000);
      best = std::max(best, flop / seconds_since(round));
    } while (seconds_since(start) < seconds);
    if (loops.leave != nullptr) loops.leave();
    return best;
  });
}

double burn(long rounds) {
  static const Loops& loops = fastest(Precision::fp32);
  double flop = 0;
  without_gil([&] { flop = loops.burn(rounds); });
  return flop;
}

// As a policy's weights are.
void place(const Pages& pages, std::size_t bytes) {
  std::vector<char*> each;
  for (std::size_t i = 0; i < bytes; i += kPage) each.push_back(pages.data() + i);
  spread_over_cache(each);
}

// Forwards again and again, and forwards and backwards in turns: then each pass begins with what the last one
// left in the caches, the most that any order of reading can find there.
double read_rate(std::size_t bytes, int threads, double seconds) {
  const Loops& loops = fastest(Precision::fp32);
  bytes = std::max<std::size_t>(bytes / 1024 * 1024, 1024);
  constexpr int places = 4;
  return rate(threads, [&] {
    volatile float sink = 0;
    double best = 0;
    const long rounds = 2 * std::max<long>(1, static_cast<long>(4e6 / static_cast<double>(bytes)));
    // Where pages lie decides by chance how much of them a cache holds.
    std::vector<Pages> pages;
    for (int p = 0; p < places; ++p) {
      pages.emplace_back(bytes);
      float* data = reinterpret_cast<float*>(pages.back().data());
      std::fill(data, data + bytes / sizeof(float), 1.0f);
      place(pages.back(), bytes);
    }
    for (const Pages& region : pages) {
      const auto start = Clock::now();
      do {
        for (const bool turns : {false, true}) {
          const auto round = Clock::now();
          for (long i = 0; i < rounds; ++i) sink = loops.read(region.data(), bytes, turns && i % 2 == 1);
          best = std::max(best, static_cast<double>(bytes) * rounds / seconds_since(round));
        }
      } while (seconds_since(start) < seconds / places);
    }
    (void)sink;
    return best;
  });
}

// Of fresh pages, as they came and placed.
std::pair<double, double> placed_rates(std::size_t bytes, double seconds) {
  const Loops& loops = fastest(Precision::fp32);
  bytes = std::max<std::size_t>(bytes / kPage * kPage, kPage);
  std::pair<double, double> rates;
  without_gil([&] {
    const Pages pages(bytes);
    std::fill(pages.data(), pages.data() + bytes, 1);
    const auto measure = [&] {
      volatile float sink = 0;
      std::vector<double> times;
      for (const auto start = Clock::now(); seconds_since(start) < seconds || times.size() < 10;) {
        const auto round = Clock::now();
        sink = loops.read(pages.data(), bytes / 1024 * 1024, false);
        times.push_back(seconds_since(round));
      }
      (void)sink;
      std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
      return static_cast<double>(bytes) / times[times.size() / 2];
    };
    rates.first = measure();
    place(pages, bytes);
    rates.second = measure();
  });
  return rates;
}

// `session` is a _native.Session. Its argument keeps it alive.
std::vector<double> time(const py::object& session, const Floats& obs, int steps, int candidates, int calls) {
  if (obs.ndim() != 2) throw py::value_error("obs must be [B, O]");
  const auto rows = obs.shape(0);
  const auto capsule = session.attr("_plain_call")(rows, candidates).cast<py::capsule>();
  const PlainCall call = *static_cast<const PlainCall*>(PyCapsule_GetPointer(capsule.ptr(), kPlainCall));
  if (obs.shape(1) != call.obs_dim)
    throw py::value_error("obs has rows of " + std::to_string(obs.shape(1)) + ", but must have rows of " +
                          std::to_string(call.obs_dim));
  std::vector<float> actions(static_cast<std::size_t>(rows) * static_cast<std::size_t>(call.act_dim));
  std::vector<double> seconds(static_cast<std::size_t>(std::max(calls, 0)));
  int result = 0;
  without_gil([&] {
    for (int i = 0; i < calls && result == 0; ++i) {
      const auto start = Clock::now();
      result = call.act(call.engine, obs.data(), static_cast<int>(rows), steps, candidates,
                        static_cast<std::uint32_t>(i), actions.data());
      seconds[i] = seconds_since(start);
    }
  });
  if (result != 0)
    throw py::value_error("steps is " + std::to_string(steps) + ", but must be a power of two of at most m_disc");
  return seconds;
}

}  // namespace
}  // namespace sorl::bench

PYBIND11_MODULE(_bench, m, py::mod_gil_not_used()) {
  using namespace sorl;
  using py::arg;
  m.doc() = "The loops of sorl_fast.bench: a machine's limits, and calls of a session past Python.";
  m.def("isas", &isa_names, arg("precision"), "Instruction sets that are there, slowest first.");
  m.def("_assume_tiles_for_test", &assume_tiles_for_test, "For a test that emulates the instructions.");
  m.def("flop_rate", &bench::flop_rate, arg("precision"), arg("isa") = py::none(), arg("threads") = 1,
        arg("seconds") = 0.05, R"(The multiply-add limit.

Parameters
----------
precision
    fp32, bf16 or int8.
isa
    An instruction set of `isas(precision)`; None: the fastest.
threads
    How many at once, at least 1.
seconds
    How long each measures; the best of its rounds counts.

Returns
-------
float
    FLOP a second of all threads; a multiply-add is two.
)");
  m.def("burn", &bench::burn, arg("rounds"), R"(Multiply-adds in registers, in fp32 on the fastest instruction set.

Parameters
----------
rounds
    Of a few dozen multiply-adds of vectors each.

Returns
-------
float
    The FLOP done.
)");
  m.def("read_rate", &bench::read_rate, arg("bytes"), arg("threads") = 1, arg("seconds") = 0.05,
        R"(The read bandwidth of a working set.

Parameters
----------
bytes
    Of each thread's own working set, rounded down to whole KiB, at least one.
threads
    How many at once, at least 1.
seconds
    How long each measures; the best of its rounds counts.

Returns
-------
float
    Bytes a second of all threads.
)");
  m.def("placed_rates", &bench::placed_rates, arg("bytes"), arg("seconds") = 0.05,
        R"(What a circle through fresh pages reads, before and after they are placed for the second-level cache.

Parameters
----------
bytes
    Rounded down to whole pages, at least one. More than nine tenths of that cache are not placed.
seconds
    How long each measures; the median of its rounds counts.

Returns
-------
tuple of float
    Bytes a second as the pages came, and as a policy's weights are.
)");
  m.def("time", &bench::time, arg("session"), arg("obs"), arg("steps"), arg("candidates"), arg("calls"),
        R"(Time calls of a session as a C++ caller sees them.

Parameters
----------
session
    A `_native.Session`, which no other thread uses meanwhile.
obs
    Observations [B, O], float32.
steps, candidates
    Of each call; its noise is that of seed 0.
calls
    How many.

Returns
-------
list of float
    Seconds of each call.

Raises
------
ValueError
    An argument is wrong.
)");
}
