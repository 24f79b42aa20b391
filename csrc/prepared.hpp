// The schedules that a session was told of, beside those that its model has.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model.hpp"

namespace sorl {

// Copies share what was prepared.
class PreparedSchedules {
 public:
  static constexpr int kMost = 1024;
  static constexpr int kFirstUneven = 1 << 16;  // M equal steps are numbered M, others from here on

  // Null where there is none of that number.
  const Schedule* find(int number) const noexcept;
  // Folds the biases of a schedule of these sizes, once, and returns its number: for M equal steps M, for equal
  // sizes the same. 0, with the reason in `error`, where the policy does not take it. Throws std::bad_alloc.
  int prepare(const Packed& p, std::vector<double> sizes, std::string& error);

 private:
  struct Prepared {
    int number = 0;
    std::vector<double> sizes;
    Schedule schedule;
    Pages biases;
  };
  std::vector<std::shared_ptr<const Prepared>> all_;  // by number
};

}  // namespace sorl
