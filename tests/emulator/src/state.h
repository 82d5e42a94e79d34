// The emulated grid: fibres, warps, barriers, shared memory and everything that is still in flight.
#pragma once
#include <setjmp.h>
#include <skimattn_host/machine.h>
#include <ucontext.h>

#include <cstdint>
#include <string>
#include <vector>

namespace skim_emulator {

constexpr int kWarp = 32;
constexpr int kGroup = 128;
constexpr int kGranule = 16;           // bytes; the unit in which shared memory is tracked
constexpr uint32_t kSmemBase = 0x400;  // shared addresses do not start at zero on the device either
constexpr int kMaxSmem = 232448;
constexpr int kNamedBarriers = 16;
constexpr int kMaxN = 256;

enum class Schedule { kEarly, kLate, kRandom };

struct Cta;
struct Warp;
struct Mbarrier;

// Why a fibre is not running; kept for the deadlock report.
struct Wait {
  enum Kind { kNone, kCollective, kNamedBarrier, kMbarrier, kWgmma, kRegisters } kind = kNone;
  const Mbarrier* barrier = nullptr;
  int id = 0;       // named barrier, parity, collective kind, or groups still allowed in flight
  int threads = 0;  // named barrier
};

struct Fibre {
  ThreadIds ids;
  int lane;
  Warp* warp;
  Cta* cta;
  jmp_buf context;
  bool started, done;
  Wait wait;
  uint32_t result;  // of the last collective
  uint32_t proxy_fences, init_fences;
  uint32_t store_groups;  // committed bulk stores
  bool wgmma_fenced;
  uint64_t wgmma_issued;
  uint32_t wgmma_groups;  // committed
};

struct Warp {
  Cta* cta;
  Fibre* lanes[kWarp];
  uint32_t live, ready;
  uint32_t arrived;  // at the collective in progress
  Collective kind;
  uint32_t values[kWarp];
  int arguments[kWarp];
  int registers;
  uint64_t priority;
};

struct NamedBarrier {
  int threads = 0, arrived = 0;
  uint32_t warps = 0, waiting = 0;  // masks of warps
  bool reduce = false, all = true;
};

struct Mbarrier {
  uint32_t offset, count, pending;
  int64_t tx;
  uint64_t phase;
  Fibre* owner;  // who initialised it, and how many init fences it had run by then
  uint32_t owner_fences;
  std::vector<Fibre*> waiters;
};

// State of 16 bytes of shared memory.
struct Granule {
  uint16_t loads, store_reads, mma_reads;  // in flight
  uint16_t barrier;                        // holds a live mbarrier
  Fibre* writer;                           // last generic writer, null once the async proxy overwrote it
  uint32_t writer_fences;                  // how many proxy fences it had run by then
};

// What encode_map() in Python writes into the 128 bytes of a tensor map.
struct Map {
  uint64_t magic;
  uint64_t address;
  uint64_t strides[3];  // bytes, of dimensions 1..3
  uint32_t dims[4], box[2];
  uint32_t element_bytes;
  char name[20];
};
constexpr uint64_t kMapMagic = 0x50414d4d494b53ull;  // "SKIMMAP"

struct Load {
  Cta* cta;
  Fibre* thread;
  Map map;
  uint32_t to, barrier, bytes;
  int at[4];
};

struct Store {
  Cta* cta;
  Fibre* thread;
  Map map;
  uint32_t from, bytes, group;
  bool read;
  int at[4];
  std::vector<uint8_t> data;  // shared memory at issue; what is written once `read`
};

// 64 x N accumulators of a warpgroup while some wgmma on them is in flight.
struct AccumulatorTile {
  int n, pending;  // unfinished wgmmas
  float* d[kGroup];
  bool taken[kGroup];  // the registers were copied here and poisoned
  float c[64 * kMaxN];
};

struct Wgmma {
  int n, issued;
  uint32_t group;
  Element element;
  bool registers, accumulate, b_mn_major, computed;
  uint64_t a_descriptor, b_descriptor;
  AccumulatorTile* tile;
  const uint32_t* a[kGroup];
  uint32_t a_values[kGroup][4];
  std::vector<uint16_t> operands;  // A then B, as they were at issue
};

struct Warpgroup {
  uint64_t retired = 0;       // ordinal of ops.front()
  std::vector<Wgmma*> ops;    // issued by at least one thread, oldest first
  std::vector<AccumulatorTile*> tiles;
  int waiting = 0, wait_pending = 0;
};

struct Cta {
  int index, threads, smem_bytes, live;
  uint8_t* smem;
  std::vector<Fibre> fibres;
  std::vector<Warp> warps;
  std::vector<Warpgroup> groups;
  std::vector<Granule> granules;
  std::vector<Mbarrier> mbarriers;
  NamedBarrier named[kNamedBarriers];
};

struct Range {
  uint64_t base, size;
};

struct Machine {
  Schedule schedule;
  uint64_t seed, random_state;
  Fibre* current;
  std::vector<Cta> ctas;
  std::vector<Warp*> warps;
  std::vector<Load> loads;
  std::vector<Store> stores;
  std::vector<Range> ranges;
  size_t last_warp;
  int live;
  jmp_buf scheduler, abort_point;
  std::string kind, message;
  void (*entry)(const void*);
  const void* block;
  volatile bool expired;  // the time limit has passed
};
extern Machine machine;

// Ends the launch with an error; never returns. `fail` names the running thread first.
[[noreturn]] void fail(const char* kind, const char* format, ...) __attribute__((format(printf, 2, 3)));
[[noreturn]] void abort_launch(const char* kind, std::string message);
std::string describe(const Fibre& fibre);

// Scheduler
uint64_t random_number();
inline bool chance(int one_in) { return random_number() % one_in == 0; }
void block(Wait wait);  // until somebody wakes this fibre
void wake(Fibre& fibre);
void run_grid();
[[noreturn]] void report_deadlock();
char* stack_of(size_t index, size_t* size);

// What lives where
void lane_exited(Fibre& fibre);
Mbarrier& find_mbarrier(Cta& cta, const void* pointer, const char* what);
Mbarrier& find_mbarrier(Cta& cta, uint32_t offset, const char* what);
void complete_tx(Cta& cta, Mbarrier& barrier, uint32_t bytes);
uint32_t smem_offset(Cta& cta, const void* pointer, uint32_t bytes, const char* what);
void check_global(const void* address, uint64_t bytes, const char* what);
void check_async_read(Fibre& reader, Granule& granule, uint32_t offset, const char* what);
bool deliver_load();         // one, chosen by the schedule; false if none is in flight
void finish_stores();        // at the end of the grid
void check_exit(Fibre& fibre);
void check_cta_end(Cta& cta);
float from_bf16(uint16_t bits);
float from_fp16(uint16_t bits);

}  // namespace skim_emulator
