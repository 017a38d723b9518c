// The Metal standard library for kernels on the CPU: everything in one header, precompiled.
#pragma once
#include "spaces.h"
#include "types.h"
#include "vectors.h"
#include "math.h"
#include "geometry.h"
#include "simd.h"
#include "simdgroup_matrix.h"
#include "atomics.h"
#include "logging.h"
#include "internals.h"
#include "entry.h"

// Words of the language: nothing else can be called so.
#define half _Float16
#define bfloat __bf16
