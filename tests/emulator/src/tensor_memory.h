// Tensor memory of a CTA, and what tcgen05 instructions have in flight on it. allocation.cpp; tensor_memory.cpp: ld and
// st; tcgen05.cpp: products and commits; tensor_order.cpp: what must have happened before each of them.
#pragma once
#include <deque>

#include "operand.h"

namespace skim_emulator {

constexpr int kLanes = 128, kColumns = 512;
constexpr int kBand = 16, kBands = kLanes / kBand;  // lanes that are tracked together

// What a product does, and where (tcgen05.mma; PTX ISA, "Instruction-descriptor").
struct Product {
  uint32_t sequence;  // of its issuer, from 1
  uint32_t d, a;      // tensor memory columns; `a` only if a_in_tensor_memory
  bool a_in_tensor_memory, accumulate;
  int m, n, element_bytes;
  Element a_type, b_type;
  Operand a_shared, b_shared;
};

// A commit or a product, in the order of issue.
struct Step {
  bool commit;
  Product product;
  uint32_t commit_index;
};

struct Commit {
  uint32_t covers;   // products of the issuer up to this sequence
  uint32_t barrier;  // shared-memory offset
  int barrier_index;
  // What its products came after: the fence::after before them orders them behind what their thread had waited for.
  // Note: what the thread itself did, such as reading shared memory, is not part of it: the ISA orders only execution.
  Clock carried;
  uint32_t phases;  // of the barrier, once it has arrived and its phase ends; 0 = has not arrived
};

// A thread that issues products. They execute in the order of issue.
struct Issuer {
  Fibre* thread = nullptr;
  uint32_t issued = 0, done = 0;
  std::deque<Step> queue;
  std::vector<Commit> commits;
  Clock carried;  // for the next commit
};

// A tcgen05.ld or .st of a warp that no wait has ended.
struct Transfer {
  uint32_t address;
  int count, split;  // columns of a lane; of 16x32bx2 those between its halves, else 0
  bool finished;     // tensor memory was read or written
  bool early;        // a load that gave its result at once
  uint32_t* registers[kWarp];
  std::vector<uint32_t> data;  // [lane][count]
};

// Wait of a warp for its transfers so far: each lane's time, from which it may tell others.
struct TransferWait {
  uint32_t covers;
  uint32_t times[kWarp];
};

struct Transfers {
  uint32_t issued = 0;
  std::vector<Transfer> pending;
  std::vector<TransferWait> waits;
};

// What the warps' instructions were last given; kept until the whole warp has come.
struct TensorWarp {
  Transfers loads, stores;
  void* pointers[kWarp];
};

// State of 16 lanes of a column.
struct Cell {
  enum Writer : uint8_t { kNobody, kStore, kProduct };
  Writer written;
  uint8_t writer;      // warp or issuer
  uint32_t write;      // number of its st, or sequence of its product
  uint32_t signature;  // of the product: its accumulator, shape and kind
  bool read;           // since then: the fields below say by whom, by number or sequence, 0 = not
  uint32_t loads[kMaxGroups];
  uint32_t products[kMaxIssuers];
};

struct Allocation {
  int base, columns, warp;
  uint32_t time;  // of the warp's first lane
};

struct TensorMemory {
  bool relinquished = false;
  int last_columns = kColumns;  // of the last allocation: later ones may not be larger
  std::vector<Allocation> allocations;
  uint32_t words[kLanes][kColumns];
  Cell cells[kBands][kColumns];
  Issuer issuers[kMaxIssuers];
  std::vector<TensorWarp> warps;
};

inline int warp_index(const Warp& warp) { return static_cast<int>(&warp - warp.cta->warps.data()); }
inline bool power_of_two(int value) { return value > 0 && (value & (value - 1)) == 0; }

TensorMemory& tensor_memory(Cta& cta);
void allocate(Warp& warp, int columns);
void deallocate(Warp& warp, uint32_t address, int columns);
// Fills m, n, types and shared-memory operands from the instruction descriptor; fails on what it may not say.
void decode_instruction(Product& product, uint32_t bits, int element_bytes, uint64_t a, uint64_t b);
void execute(Cta& cta, const Product& product);
bool run_step(Cta& cta, Issuer& issuer);  // the oldest product or commit; false if there is none

// ---- order. An access is by a warp or by one thread (a product); what each of its threads knows counts.
struct View {
  const Fibre* fibre;
  // Up to which sequence the products of each issuer are known to be done; the second without regard to
  // tcgen05_fence_after_thread_sync.
  uint32_t products[kMaxIssuers], products_unfenced[kMaxIssuers];
};
struct Access {
  Cta* cta;
  const char* what;
  int warp, issuer;  // that makes it; -1 = not one
  bool plain;        // synchronous: needs no tcgen05 fences
  std::vector<View> views;
  uint32_t checked[2][kMaxGroups * 4];  // loads and stores of each warp up to here are known to be over
};
Access access_of_warp(Cta& cta, int warp, const char* what, bool plain);
Access access_of_issuer(Cta& cta, int issuer, const char* what);

// Every column in [column, column + count) must be allocated, and the access come after that.
void check_allocated(const Access& access, uint32_t column, int count, const char* what);
// Each for the cell of a column and band of lanes.
void check_read(Access& access, int band, int column);
void check_write(Access& access, int band, int column, uint32_t signature);
void note_write(Cell& cell, Cell::Writer kind, int writer, uint32_t number, uint32_t signature);

}  // namespace skim_emulator
