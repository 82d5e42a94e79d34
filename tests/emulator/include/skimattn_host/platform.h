// The host's side of core/platform.cuh: what the device compiler provides and a C++20 host compiler does not.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#define SKIM_DEVICE inline
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
