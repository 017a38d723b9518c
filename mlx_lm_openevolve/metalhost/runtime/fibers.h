#pragma once
#include "base.h"

extern "C" void mh_switch(void** save, void* load);

namespace mh {
void make_stacks(unsigned count);
void prepare_stack(Thread& thread, unsigned index, void (*entry)());
bool in_stack_guard(Address address);  // a stack overflow faults there
}  // namespace mh
