// constexpr does not replace constant at program scope.
// because: program scope variable must reside in constant address space
// source: MSL 4.0 section 4; AdaptiveCpp/AdaptiveCpp issue 864
// header
constexpr float factor = 2.0f;  // BUG
// body
y[0] = x[0] * factor;
