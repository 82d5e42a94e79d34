// Vector clocks, which thousands of threads of a grid share.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace skim_emulator {

// For each thread of the CTA, up to which of its own times everything it did is known; then, for each mbarrier, how
// many of its phases are known to have completed. Shared, never changed; null = knows nothing.
// Counted without atomic operations, unlike a shared_ptr: the emulator is one OS thread, and copies these all the time.
class Clock {
 public:
  Clock() = default;
  Clock(std::nullptr_t) {}
  explicit Clock(std::vector<uint32_t> times) : body_(new Body{1, std::move(times)}) {}
  Clock(const Clock& other) : body_(other.body_) {
    if (body_ != nullptr) ++body_->uses;
  }
  Clock(Clock&& other) noexcept : body_(std::exchange(other.body_, nullptr)) {}
  Clock& operator=(Clock other) noexcept {
    std::swap(body_, other.body_);
    return *this;
  }
  ~Clock() {
    if (body_ != nullptr && --body_->uses == 0) delete body_;
  }

  const std::vector<uint32_t>& operator*() const { return body_->times; }
  bool operator==(const Clock& other) const = default;  // the same clock, not equal times

 private:
  struct Body {
    size_t uses;
    std::vector<uint32_t> times;
  };
  Body* body_ = nullptr;
};

}  // namespace skim_emulator
