// Turns what would take the process down, or never end, into an error of the launch.
#pragma once
#include <signal.h>
#include <time.h>

namespace skim_emulator {

// Memory faults and divisions by zero in the kernel.
class FaultGuard {
 public:
  FaultGuard();
  ~FaultGuard();
  FaultGuard(const FaultGuard&) = delete;

 private:
  struct sigaction old_[3];
  stack_t old_stack_;
};

// A limit on real time. The first signal asks the scheduler to stop; the second finds a kernel that loops without
// ever giving way, and stops it where it is.
class TimeGuard {
 public:
  explicit TimeGuard(double seconds);
  ~TimeGuard();
  TimeGuard(const TimeGuard&) = delete;

 private:
  struct sigaction old_;
  timer_t timer_;
};

}  // namespace skim_emulator
