#include "guard.h"

#include <sys/syscall.h>
#include <unistd.h>

#include "state.h"

namespace skim_emulator {
namespace {

constexpr int kSignals[3] = {SIGSEGV, SIGBUS, SIGFPE};
constexpr double kGrace = 0.5;  // seconds between the two signals

void on_fault(int, siginfo_t* info, void*) { fail("out-of-bounds", "memory fault at %p", info->si_addr); }

void on_time(int) {
  if (machine.expired && machine.current != nullptr) {
    fail("timeout", "the time limit has passed, and the thread loops without waiting for anything");
  }
  machine.expired = true;
}

timespec to_timespec(double seconds) {
  const auto whole = static_cast<time_t>(seconds);
  return {whole, static_cast<long>((seconds - static_cast<double>(whole)) * 1e9)};
}

}  // namespace

FaultGuard::FaultGuard() {
  static char stack[64 * 1024];  // the fault may be a fibre's stack overflow
  stack_t own{};
  own.ss_sp = stack;
  own.ss_size = sizeof stack;
  sigaltstack(&own, &old_stack_);
  struct sigaction action{};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &action, &old_[i]);
}

FaultGuard::~FaultGuard() {
  for (int i = 0; i < 3; ++i) sigaction(kSignals[i], &old_[i], nullptr);
  sigaltstack(&old_stack_, nullptr);
}

TimeGuard::TimeGuard(double seconds) {
  struct sigaction action{};
  action.sa_handler = on_time;
  action.sa_flags = SA_NODEFER | SA_ONSTACK | SA_RESTART;
  sigaction(SIGALRM, &action, &old_);
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;  // this thread, whatever others the process has
  event.sigev_signo = SIGALRM;
  event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));
  timer_create(CLOCK_MONOTONIC, &event, &timer_);
  const itimerspec times{to_timespec(kGrace), to_timespec(seconds)};
  timer_settime(timer_, 0, &times, nullptr);
}

TimeGuard::~TimeGuard() {
  timer_delete(timer_);
  sigaction(SIGALRM, &old_, nullptr);
}

}  // namespace skim_emulator
