/* portable.h - what every header of kernels/shared needs: they are C17, C++17 and CUDA at once (base/portable.h). */
#pragma once

#include "base/half.h"
#include "base/portable.h"

#define K_INLINE PORTABLE_INLINE
