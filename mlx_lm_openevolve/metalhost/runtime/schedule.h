#pragma once
#include "base.h"

namespace mh {
void run_grid();
}  // namespace mh
