// The host version of the rendered wgmma operand lists.
#pragma once
#include <skimattn_host/machine.h>
#include <skimattn/core/platform.cuh>

namespace skimattn::ptx {

template <class T>
constexpr skim_emulator::Element kHostElement = skim_emulator::Element::kBf16;
template <>
inline constexpr skim_emulator::Element kHostElement<ElementFp16> = skim_emulator::Element::kFp16;

template <class T, int N>
struct Wgmma {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256, "wgmma: N is a multiple of 8, at most 256");
  static void ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    skim_emulator::wgmma(d, N, kHostElement<T>, nullptr, a, b, accumulate, false);
  }
  static void ss_mn_major(float (&d)[N / 2], uint64_t a, uint64_t b) {
    skim_emulator::wgmma(d, N, kHostElement<T>, nullptr, a, b, true, true);
  }
  static void rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b) {
    skim_emulator::wgmma(d, N, kHostElement<T>, a, 0, b, true, true);
  }
  static void rs_k_major(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    skim_emulator::wgmma(d, N, kHostElement<T>, a, 0, b, accumulate, false);
  }
};

// 8-bit operands: K-major alone, so there is no product with B MN-major.
template <int N>
struct Wgmma<ElementE4m3, N> {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256, "wgmma: N is a multiple of 8, at most 256");
  static void ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
    skim_emulator::wgmma(d, N, skim_emulator::Element::kE4m3, nullptr, a, b, accumulate, false);
  }
  static void rs_k_major(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    skim_emulator::wgmma(d, N, skim_emulator::Element::kE4m3, a, 0, b, accumulate, false);
  }
};

}  // namespace skimattn::ptx
