// The host version of the rendered tcgen05.ld and .st operand lists.
#pragma once
#include <skimattn_host/machine.h>
#include <skimattn/core/platform.cuh>

namespace skimattn::ptx {

template <int N>
inline void tcgen05_ld(float* d, uint32_t address) {
  skim_emulator::tensor_collective(skim_emulator::Collective::kTensorLoad, address, N, d);
}
template <int N>
inline void tcgen05_wait_ld(float* d) {
  skim_emulator::tensor_collective(skim_emulator::Collective::kTensorWaitLoad, 0, N, d);
}
// The registers are read at once, whatever the schedule.
template <int N>
inline void tcgen05_st(uint32_t address, const uint32_t* d) {
  skim_emulator::tensor_collective(skim_emulator::Collective::kTensorStore, address, N, const_cast<uint32_t*>(d));
}
template <int N>
inline void tcgen05_st(uint32_t address, const float* d) {
  skim_emulator::tensor_collective(skim_emulator::Collective::kTensorStore, address, N, const_cast<float*>(d));
}
template <int N, int Split>
inline void tcgen05_ld_halves(float* d, uint32_t address) {
  skim_emulator::tensor_collective(skim_emulator::Collective::kTensorLoad, address, N, d, Split);
}
template <int N, int Split>
inline void tcgen05_st_halves(uint32_t address, const uint32_t* d) {
  skim_emulator::tensor_collective(skim_emulator::Collective::kTensorStore, address, N, const_cast<uint32_t*>(d),
                                   Split);
}
template <int N, int Split>
inline void tcgen05_st_halves(uint32_t address, const float* d) {
  skim_emulator::tensor_collective(skim_emulator::Collective::kTensorStore, address, N, const_cast<float*>(d), Split);
}

}  // namespace skimattn::ptx
