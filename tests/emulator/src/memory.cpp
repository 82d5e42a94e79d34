// Shared memory as threads see it, the checks on it, global ranges, and the 16-bit formats.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "state.h"

namespace skim_emulator {

namespace {

// Others take a turn first: a strong store comes as late as the barriers after it let it.
void yield() {
  wake(*machine.current);
  block(Wait{});
}

}  // namespace

uint8_t* dynamic_smem() { return machine.current->cta->smem; }

uint32_t smem_address(const void* pointer) {
  Cta& cta = *machine.current->cta;
  return kSmemBase + smem_offset(cta, pointer, 0, "smem_address");
}

uint32_t smem_offset(Cta& cta, const void* pointer, uint32_t bytes, const char* what) {
  const auto offset = static_cast<const uint8_t*>(pointer) - cta.smem;
  if (offset < 0 || offset + static_cast<int64_t>(bytes) > cta.smem_bytes) {
    fail("out-of-bounds", "%s at smem%+lld, %u bytes, outside the %d bytes of the CTA", what,
         static_cast<long long>(offset), bytes, cta.smem_bytes);
  }
  return static_cast<uint32_t>(offset);
}

namespace {

uint32_t aligned_offset(const void* pointer, int bytes, const char* what) {
  const uint32_t offset = smem_offset(*machine.current->cta, pointer, static_cast<uint32_t>(bytes), what);
  if (offset % static_cast<uint32_t>(bytes) != 0) fail("alignment", "%s of %d bytes at smem+%u", what, bytes, offset);
  return offset;
}

}  // namespace

void shared_write(void* pointer, const void* value, int bytes) {
  generic_write(*machine.current, aligned_offset(pointer, bytes, "st_shared"), static_cast<uint32_t>(bytes), value);
  std::memcpy(pointer, value, static_cast<size_t>(bytes));
}

void shared_read(void* value, const void* pointer, int bytes) {
  generic_read(*machine.current, aligned_offset(pointer, bytes, "ld_shared"), static_cast<uint32_t>(bytes));
  std::memcpy(value, pointer, static_cast<size_t>(bytes));
}

// Comes after every write so far and before every later one, in the thread's own time.
void fence_proxy_async() { machine.current->fence_times.push_back(++machine.current->time); }

void check_global(const void* address, uint64_t bytes, const char* what) {
  if (machine.ranges.empty()) return;
  const auto at = reinterpret_cast<uint64_t>(address);
  for (const Range& range : machine.ranges) {
    if (at >= range.base && at + bytes <= range.base + range.size) return;
  }
  fail("out-of-bounds", "%s of %llu bytes at %p, in no known tensor", what, static_cast<unsigned long long>(bytes),
       address);
}

void global_access(const void* address, int bytes, bool write) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fail("alignment", "global access of %d bytes at %p", bytes, address);
  }
  check_global(address, bytes, write ? "global store" : "global load");
}

// ---- narrow formats, round to nearest even

uint32_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

float from_bf16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

uint32_t to_fp16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fff;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and up round to infinity
  if (magnitude < 0x38800000) {                       // subnormal: adding 0.5 makes the FPU round at 2^-24
    float shifted;
    std::memcpy(&shifted, &magnitude, 4);
    shifted += 0.5f;
    uint32_t rounded;
    std::memcpy(&rounded, &shifted, 4);
    return sign | (rounded - 0x3f000000);
  }
  return sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13);
}

// Sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities, 0x7f is NaN, 448 the largest.
uint32_t to_e4m3(float value) {
  if (value != value) return 0x7f;
  const uint32_t sign = std::signbit(value) ? 0x80 : 0;
  const float magnitude = std::fabs(value);
  if (magnitude >= 448.0f) return sign | 0x7e;
  if (magnitude == 0.0f) return sign;
  int exponent = 0;
  std::frexp(magnitude, &exponent);  // magnitude in [2^(exponent - 1), 2^exponent)
  const int step = std::max(exponent - 1, -6) - 3;
  const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, -step)));
  // Counted in steps, the numbers of one exponent follow those of the one before: 8 to 16 steps, of which 16 is the
  // first of the next.
  return sign | (steps + static_cast<uint32_t>(step + 9) * 8);
}

namespace {

float e4m3_value(int bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  if ((bits & 0x7f) == 0x7f) return std::nanf("");
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

}  // namespace

float from_e4m3(uint8_t bits) {
  static const auto values = [] {
    std::array<float, 256> all;
    for (int i = 0; i < 256; ++i) all[static_cast<size_t>(i)] = e4m3_value(i);
    return all;
  }();
  return values[bits];
}

float from_fp16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ff;
  uint32_t bits;
  if (exponent == 0) {
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    std::memcpy(&bits, &value, 4);
  } else if (exponent == 31) {
    bits = 0x7f800000 | mantissa << 13;
  } else {
    bits = (exponent + 112) << 23 | mantissa << 13;
  }
  bits |= sign;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace skim_emulator
