// The actions of a chunk, one a tick: what is left of a session's last call. Allocates when it is made only.
#pragma once

#include <cstring>
#include <vector>

namespace sorl {

class Replay {
 public:
  Replay() = default;
  // Of `chunk` actions of act_dim / chunk numbers each. With one action every tick is a call.
  Replay(int chunk, int act_dim)
      : length_(chunk), at_(chunk), each_(static_cast<std::size_t>(act_dim / chunk)),
        actions_(static_cast<std::size_t>(act_dim)) {}

  // Whether the next tick is a call, which writes its actions to call().
  bool due() const noexcept { return at_ == length_; }
  float* call() noexcept { return actions_.data(); }

  // The first action of a call. Of one that held an action nothing is left: the next tick is a call again.
  void begin(bool held, float* action) noexcept {
    at_ = 0;
    next(action);
    if (held) drop();
  }

  // The action that is next; only where no call is due.
  void next(float* action) noexcept {
    std::memcpy(action, actions_.data() + static_cast<std::size_t>(at_++) * each_, each_ * sizeof(float));
  }

  void drop() noexcept { at_ = length_; }

 private:
  int length_ = 1;
  int at_ = 1;
  std::size_t each_ = 0;
  std::vector<float> actions_;
};

}  // namespace sorl
