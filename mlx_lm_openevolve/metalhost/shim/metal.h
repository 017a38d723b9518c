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
