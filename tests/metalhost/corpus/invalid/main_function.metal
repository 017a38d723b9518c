// No function is called main.
// because: non-qualified function cannot be called 'main'
// source: MSL 4.0 section 1.5.4
// header
int main() {  // BUG
  return 0;
}
// body
y[0] = x[0];
