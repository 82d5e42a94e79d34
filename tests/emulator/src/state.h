// The emulated grid: fibres, warps, barriers, shared memory and everything that is still in flight.
#pragma once
#include <setjmp.h>
#include <skimattn_host/machine.h>
#include <ucontext.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "clock.h"

namespace skim_emulator {

constexpr int kWarp = 32;
constexpr int kGroup = 128;
constexpr int kGranule = 16;           // bytes; the unit in which shared memory is tracked
constexpr uint32_t kSmemBase = 0x400;  // shared addresses do not start at zero on the device either
constexpr int kRegisterFile = 65536;
constexpr int kMaxSmem = 232448;
constexpr int kNamedBarriers = 16;
constexpr int kMaxN = 256;
constexpr int kMaxMbarriers = 64;
constexpr int kMaxGroups = 8;
constexpr int kMaxIssuers = 4;  // threads of a CTA that issue tcgen05 products

enum class Schedule { kEarly, kLate, kRandom };

struct Cta;
struct Warp;
struct Mbarrier;
struct TensorMemory;

// Where threads meet: what those who arrived knew, until the phase ends.
struct Meeting {
  std::vector<uint32_t> known;
  Clock last;  // already merged
};

// Why a fibre is not running; kept for the deadlock report.
struct Wait {
  enum Kind { kNone, kCollective, kNamedBarrier, kMbarrier, kWgmma } kind = kNone;
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
  uint32_t result;                         // of the last collective
  Clock clock;                             // what it knows of others
  uint32_t time;                           // its own, starts at 1; rises with every release and every proxy fence
  std::vector<uint32_t> fence_times;       // of its proxy fences, rising
  Clock tensor_clock;                      // what its tcgen05 operations know: `clock` at the last fence::after
  std::vector<uint32_t> before_times;      // of its tcgen05 fence::before, rising
  std::vector<uint32_t> store_read_times;  // per committed bulk group: when a wait covered it, 0 = not yet
  uint32_t init_fences;
  uint32_t store_groups;      // committed bulk stores
  uint32_t last_store_group;  // 1 + the last bulk group with a store in it, 0 = none
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
  uint32_t matrices[kWarp][4];  // what the lanes give to a store of matrices
  int registers;
  uint64_t priority;
};

struct NamedBarrier {
  int threads = 0, arrived = 0;
  uint32_t warps = 0, waiting = 0;  // masks of warps
  Meeting meeting;
};

struct Mbarrier {
  uint32_t offset, count, pending;
  int64_t tx;
  uint64_t phase;
  bool seen;     // somebody's wait saw the last completed phase
  Fibre* owner;  // who initialised it, when, and how many init fences it had run by then
  uint32_t owner_time, owner_fences;
  Meeting meeting;
  Clock completed;  // what whoever sees the last completed phase knows
  std::vector<Fibre*> waiters;
};

// State of 16 bytes of shared memory.
struct Granule {
  uint16_t loads, store_reads, mma_reads, product_reads;  // in flight
  uint16_t barrier;                                       // holds a live mbarrier
  bool written;                                           // by threads, since the last tma_load: its words say by whom
  bool loaded;  // by TMA; whoever uses it must have seen `load_phases` of the mbarrier
  uint16_t load_barrier;
  uint32_t load_phases;
  Fibre* storer;  // thread of the last tma_store that read it, and its bulk group
  uint32_t store_group;
  uint32_t mma_waits[kMaxGroups];  // 1 + ordinal of the wait that ended the last wgmma of each warpgroup, 0 = none
  uint32_t products[kMaxIssuers];  // sequence of the last tcgen05_mma of each issuer that read it, 0 = none
};

// State of 4 bytes of shared memory: who wrote it last, and when by the writer's time.
struct Word {
  uint16_t writer;  // thread + 1, 0 = none
  bool read;        // by threads; Cta::readers says when
  uint32_t time;
};

// What encode_map() in Python writes into the 128 bytes of a tensor map.
struct Map {
  uint64_t magic;
  uint64_t address;
  uint64_t strides[3];  // bytes, of dimensions 1..3
  uint32_t dims[4], box[4];
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
  std::vector<uint8_t> operands;  // A then B, as they were at issue
  std::vector<Clock> clocks;      // what the threads knew when they issued it, without repetitions
};

struct Warpgroup {
  uint64_t retired = 0;     // ordinal of ops.front()
  std::vector<Wgmma*> ops;  // issued by at least one thread, oldest first
  std::vector<AccumulatorTile*> tiles;
  int waiting = 0, wait_pending = 0;
  std::vector<std::array<uint32_t, kGroup>> wait_times;  // per wait, the time of each thread
};

struct Cta {
  int index, threads, smem_bytes, live;
  uint8_t* smem;
  std::vector<Fibre> fibres;
  std::vector<Warp> warps;
  std::vector<Warpgroup> groups;
  std::vector<Granule> granules;
  std::vector<Word> words;
  std::vector<uint32_t> readers_of;            // by word: 1 + its place in `readers`; 0 = nobody has read it
  std::vector<std::vector<uint32_t>> readers;  // the last time each thread read a word
  std::vector<Mbarrier> mbarriers;
  NamedBarrier named[kNamedBarriers];
  TensorMemory* tensor;  // null until a tcgen05 instruction
};

struct Range {
  uint64_t base, size;
};

struct Machine {
  Schedule schedule;
  int registers_at_launch = 0;  // of a thread
  bool strict_products;
  uint64_t seed, random_state;
  Fibre* current;
  std::vector<Cta> ctas;
  std::vector<Warp*> warps, by_priority;
  std::vector<Load> loads;
  std::vector<Store> stores;
  std::vector<Range> ranges;
  size_t last_warp;
  int live;
  size_t steps;  // tcgen05 products and commits in flight
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
void order_warps();  // anew, by their priorities
void run_grid();
[[noreturn]] void report_deadlock();
char* stack_of(size_t index, size_t* size);

// Order of events (order.cpp): who knows of what
void ensure_known(const Cta& cta, Meeting& meeting);  // even if no thread arrived
void release(Meeting& meeting, Fibre& fibre);
void release(const Cta& cta, Meeting& meeting, const Clock& clock);
Clock end_phase(Meeting& meeting);
void acquire(Fibre& fibre, const Clock& clock);
void meet(Warp& warp, uint32_t lanes);
inline bool knows(const Clock& clock, int thread, uint32_t time) {
  return clock != nullptr && (*clock)[static_cast<size_t>(thread)] >= time;
}
inline bool knows_phases(const Cta& cta, const Clock& clock, int barrier, uint32_t phases) {
  return knows(clock, cta.threads + barrier, phases);
}

// Accesses to shared memory (hazards.cpp): each checks what must have happened before it, and is remembered
void generic_read(Fibre& fibre, uint32_t offset, uint32_t bytes);
void generic_write(Fibre& fibre, uint32_t offset, uint32_t bytes, const void* value);
void async_write_begins(Fibre& fibre, uint32_t offset, uint32_t bytes, const char* map);
void async_write_lands(Cta& cta, uint32_t offset, uint32_t bytes, int barrier, uint32_t phases);
// For one granule; `clocks` are those of the threads that ask for the read, `alone` the thread if it is only one.
void check_async_read(Cta& cta, uint32_t offset, const std::vector<Clock>& clocks, const char* what,
                      const Fibre* alone = nullptr);
// The same for a product of this thread, which only sees what its last tcgen05_fence_after_thread_sync covers.
void check_product_read(Fibre& fibre, uint32_t offset);

// What lives where
void lane_exited(Fibre& fibre);
void check_registers(const Cta& cta, bool everybody_has_spoken);  // the sum of what setmaxnreg asked for
Mbarrier& find_mbarrier(Cta& cta, const void* pointer, const char* what);
Mbarrier& find_mbarrier(Cta& cta, uint32_t offset, const char* what);
void complete_tx(Cta& cta, Mbarrier& barrier, uint32_t bytes);
// Passes `clock` on; returns how many phases have completed once this one has.
uint32_t arrive_async(Cta& cta, Mbarrier& barrier, const Clock& clock);
int index_of(const Cta& cta, const Mbarrier& barrier);
uint32_t smem_offset(Cta& cta, const void* pointer, uint32_t bytes, const char* what);
void check_global(const void* address, uint64_t bytes, const char* what);
bool deliver();  // a load or product, chosen by the schedule; false if none is in flight
bool load_is_awaited(const Load& load);
void land_at(size_t index);
void finish_stores();  // at the end of the grid
void check_exit(Fibre& fibre);
void check_cta_end(Cta& cta);
void check_tensor_exit(Fibre& fibre);
void check_tensor_end(Cta& cta);
void delete_tensor_memory(Cta& cta);
void finish_tensor_collective(Warp& warp);
// Whether the products of an issuer that read a granule are known to be done.
bool knows_product(const Cta& cta, const Clock& clock, int issuer, uint32_t sequence);
float from_bf16(uint16_t bits);
float from_fp16(uint16_t bits);
float from_e4m3(uint8_t bits);

}  // namespace skim_emulator
