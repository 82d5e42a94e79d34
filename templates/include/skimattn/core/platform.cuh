// What the two compilers that read these headers do not share: NVRTC/nvcc for the device, any C++20 host
// compiler for the emulator (which defines SKIM_HOST and supplies its own ptx.cuh).
#pragma once

// Offset of a member as a constant expression: NVRTC has no <cstddef>, and its front end spells offsetof so.
#ifdef __CUDACC_RTC__
#define SKIM_OFFSETOF(type, member) __INTADDR__(&(static_cast<type*>(nullptr))->member)
#else
#define SKIM_OFFSETOF(type, member) __builtin_offsetof(type, member)
#endif

#ifdef SKIM_HOST
#include <skimattn_host/platform.h>
#else
#ifdef __CUDACC_RTC__  // NVRTC has no standard headers; nvcc reads them before anything else
using int32_t = int;
using int64_t = long long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
#else
#include <cstdint>
#endif
#define SKIM_DEVICE __device__ __forceinline__
#endif

namespace skimattn {

constexpr float kInf = __builtin_bit_cast(float, 0x7f800000u);
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

constexpr int kWarpThreads = 32;
constexpr int kGroupThreads = 128;   // a warpgroup
constexpr int kPanelRowBytes = 128;  // operands lie in shared memory as panels of 128-byte swizzled rows

// Storage types of Q, K, V and P; accumulation is always float.
struct ElementBf16 {
  using Storage = uint16_t;
};
struct ElementFp16 {
  using Storage = uint16_t;
};
struct ElementE4m3 {
  using Storage = uint8_t;
};

// Columns of such a row.
template <class Element>
inline constexpr int kPanelColumns = kPanelRowBytes / static_cast<int>(sizeof(typename Element::Storage));

SKIM_DEVICE constexpr int imin(int a, int b) { return a < b ? a : b; }
SKIM_DEVICE constexpr int imax(int a, int b) { return a > b ? a : b; }
SKIM_DEVICE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

}  // namespace skimattn
