#include "prepared.hpp"

#include <algorithm>
#include <utility>

namespace sorl {

const Schedule* PreparedSchedules::find(int number) const noexcept {
  const auto before = [](const std::shared_ptr<const Prepared>& each, int n) { return each->number < n; };
  const auto at = std::lower_bound(all_.begin(), all_.end(), number, before);
  return at != all_.end() && (*at)->number == number ? &(*at)->schedule : nullptr;
}

int PreparedSchedules::prepare(const Packed& p, std::vector<double> sizes, std::string& error) {
  if (!normalise_sizes(sizes, error)) return 0;
  const auto M = static_cast<int>(sizes.size());
  const bool even = are_even(sizes);
  if (even && p.schedule(M) != nullptr) return M;
  const bool shortcut = p.form.kind == Form::Kind::shortcut;
  const int finest = p.form.counts.back();
  if (!shortcut || M > 2 * finest) {
    const std::string counts = p.form.counts_text();
    error = "steps is " + std::string(even ? "" : "a schedule of ") + std::to_string(M) + (even ? "" : " steps") +
            ", but this policy " +
            (shortcut ? "was trained for " + counts + " Euler steps and takes at most " + std::to_string(2 * finest)
                      : "acts with " + counts);
    return 0;
  }
  int number = even ? M : kFirstUneven;
  for (const auto& each : all_) {
    if (each->sizes == sizes) return each->number;
    if (!even && each->number >= kFirstUneven) number = each->number + 1;
  }
  if (static_cast<int>(all_.size()) == kMost) {
    error = "a session keeps at most " + std::to_string(kMost) + " schedules of steps: make another one";
    return 0;
  }
  auto made = std::make_shared<Prepared>();
  made->number = number;
  made->schedule = euler_schedule(sizes, finest);
  made->sizes = std::move(sizes);
  made->biases = Pages(p.bias_floats(made->schedule) * sizeof(float), kHugePage);
  p.fold(made->schedule, reinterpret_cast<float*>(made->biases.data()));
  const auto behind = std::find_if(all_.begin(), all_.end(), [&](const auto& each) { return each->number > number; });
  all_.insert(behind, std::move(made));
  return number;
}

}  // namespace sorl
