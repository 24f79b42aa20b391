// Where a policy file's bytes come from, and the engine's view of them; policy_parser.cpp judges them.
#include "policy_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

namespace sorl {

PolicyFile::Result PolicyFile::parse(const void* bytes, std::size_t size, const std::string& name,
                                     Digest digest) {
  auto policy = std::make_unique<PolicyFile>();
  policy->storage_.reset(new float[size / sizeof(float) + 1]);
  if (size != 0) std::memcpy(policy->storage_.get(), bytes, size);
  return finish(std::move(policy), size, name, digest);
}

PolicyFile::Result PolicyFile::load(const std::string& path) {
  const auto unreadable = [&path](const std::string& why) {
    return Result{nullptr, Outcome::unreadable,
                  path + ": cannot be read: " + why + ". Give the path of a policy file."};
  };
  // without waiting for the other end of a pipe, which is no policy file
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return unreadable(std::strerror(errno));
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(fdopen(descriptor, "rb"), std::fclose);
  if (!file) {
    close(descriptor);
    return unreadable(std::strerror(errno));
  }
  struct stat info {};
  if (fstat(fileno(file.get()), &info) != 0) return unreadable(std::strerror(errno));
  if (!S_ISREG(info.st_mode)) return unreadable("it is no regular file");
  const auto size = static_cast<std::size_t>(info.st_size);
  auto policy = std::make_unique<PolicyFile>();
  policy->storage_.reset(new float[size / sizeof(float) + 1]);
  std::setvbuf(file.get(), nullptr, _IONBF, 0);
  if (std::fread(policy->storage_.get(), 1, size, file.get()) != size) {
    return unreadable(std::ferror(file.get()) ? std::strerror(errno) : "it became shorter while it was read");
  }
  return finish(std::move(policy), size, path, Digest::check);
}

PolicyView PolicyFile::view() const {
  PolicyView view{};
  view.obs_dim = obs_dim_;
  view.act_dim = act_dim_;
  view.hidden = hidden_;
  view.depth = depth_;
  view.ensemble = ensemble_;
  view.m_disc = m_disc_;
  view.m_btt = m_btt_;
  view.q_min = q_min_;
  view.form = &form_;
  view.action_low = action_low_.data();
  view.action_high = action_high_.data();
  view.map_low = map_low_.empty() ? nullptr : map_low_.data();
  view.map_high = map_high_.empty() ? nullptr : map_high_.data();
  view.obs_mean = obs_mean_.empty() ? nullptr : obs_mean_.data();
  view.obs_std = obs_std_.empty() ? nullptr : obs_std_.data();
  view.actor = actor_.data();
  view.critic = critic_.data();
  view.choice = has_choice_ ? &choice_ : nullptr;
  view.chunk = chunk_;
  if (has_ood_) {
    view.ood_mean = ood_mean_;
    view.ood_whiten = ood_whiten_;
    view.ood_threshold = ood_.threshold;
  }
  return view;
}

}  // namespace sorl
