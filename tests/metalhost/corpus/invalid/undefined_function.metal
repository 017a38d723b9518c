// A function that is declared and never defined.
// because: undefined symbol when the pipeline is built
// source: C++14 3.2
// line: none
// header
float scale(float v);
// body
y[0] = scale(x[0]);
