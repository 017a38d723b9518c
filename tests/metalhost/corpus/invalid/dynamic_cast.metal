// No dynamic_cast.
// because: dynamic_cast is not supported
// source: MSL 4.0 section 1.5.4
// header
struct A {
  int a;
};
struct B : A {
  int b;
};
// body
B v;
v.a = 1;
thread A* p = &v;
thread B* q = dynamic_cast<thread B*>(p);  // BUG
y[0] = x[0] + float(q->a);
