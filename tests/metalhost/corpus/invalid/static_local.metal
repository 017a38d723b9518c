// No static locals.
// because: variables in function scope cannot be declared static
// source: MSL 4.0 section 4 (objects live in an address space of the launch)
static int count = 0;  // BUG
count += 1;
y[0] = x[0] + float(count);
