// Takes from the process what a kernel has no use for.
#pragma once

namespace mh {

// From here on the process can write its report, map memory without code and end: it opens, makes,
// deletes, starts, ends, connects to nothing. False where the system does not offer that.
bool confine();

}  // namespace mh
