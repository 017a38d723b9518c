//// ambiguous_clamp
// clamp of a float between int limits.
// because: call to 'clamp' is ambiguous
// source: amzeratul/halley pull request 79
y[0] = clamp(x[0], -1, 1);  // BUG

//// ambiguous_max_float_half
// max of a float and a half.
// because: call to 'max' is ambiguous
// source: halide/Halide issue 8245
half h = half(x[1]);
y[0] = max(x[0], h);  // BUG

//// ambiguous_max_float_int
// max of a float and an int fits two overloads equally.
// because: call to 'max' is ambiguous
// source: overload sets of metal_math and metal_integer; amzeratul/halley pull request 79
y[0] = max(x[0], 0);  // BUG

//// ambiguous_max_int_uint
// max of a signed and an unsigned integer.
// because: call to 'max' is ambiguous
// source: overload set of metal_integer; gfx-rs/wgpu issue 3212
int a = int(x[0]);
y[0] = max(a, thread_position_in_grid.x);  // BUG

//// ambiguous_min_int_long
// -2147483648 is a long, 1 an int.
// because: call to 'min' is ambiguous
// source: gfx-rs/wgpu issue 3212
y[0] = min(1, -2147483648);  // BUG

//// ambiguous_min_uchar_int
// min of a uchar and an int.
// because: call to 'min' is ambiguous
// source: tinygrad/tinygrad issue 7036
uchar a = uchar(x[0]);
y[0] = min(a, 7);  // BUG

//// ambiguous_own_max
// A function of one's own with the signature of a library function.
// because: call to 'max' is ambiguous
// source: MSL 4.0 section 6.1 (using namespace metal)
// header
float max(float a, float b) { return a > b ? a : b; }
// body
y[0] = max(x[0], x[1]);  // BUG

//// as_type_sizes
// as_type keeps the size.
// because: as_type cast needs operands of one size
// source: MSL 4.0 section 2.21
half4 h = half4(1.0h);
float4 f = as_type<float4>(h);  // BUG
y[0] = x[0] + f.x;

//// atomic_bool_add
// A bool is stored and exchanged, not added to.
// because: no matching function for call to 'atomic_fetch_add_explicit'
// source: MSL 4.0 section 6.15.4.6
threadgroup atomic_bool flag;
atomic_fetch_add_explicit(&flag, true, memory_order_relaxed);  // BUG
y[0] = x[0];

//// atomic_float_and
// Bitwise operations are for integers.
// because: no matching function for call to 'atomic_fetch_and_explicit'
// source: MSL 4.0 section 6.15.4.6
device atomic_float* p = (device atomic_float*)y;
atomic_fetch_and_explicit(p, 1.0f, memory_order_relaxed);  // BUG

//// atomic_float_max
// The maximum of floats is not atomic.
// because: no matching function for call to 'atomic_fetch_max_explicit'
// source: MSL 4.0 section 6.15.4.6 (addition and subtraction)
device atomic_float* p = (device atomic_float*)y;
atomic_fetch_max_explicit(p, x[0], memory_order_relaxed);  // BUG

//// atomic_float_threadgroup
// Floats are atomic in device memory only.
// because: no matching function for call to 'atomic_fetch_add_explicit'
// source: MSL 4.0 section 2.6
threadgroup atomic_float sum;
atomic_fetch_add_explicit(&sum, x[0], memory_order_relaxed);  // BUG
y[0] = 0;

//// atomic_half
// There is no atomic of half.
// because: no type for atomic<half>
// source: MSL 4.0 section 2.6
// header
void count(device atomic<half>* p) {  // BUG
  atomic_store_explicit(p, half(1), memory_order_relaxed);  // BUG
}
// body
y[0] = x[0];

//// atomic_local
// Atomic objects live in device or threadgroup memory.
// because: no matching function for call to 'atomic_fetch_add_explicit'
// source: MSL 4.0 section 6.15.4
// header
void count(thread atomic_uint* p) {
  atomic_fetch_add_explicit(p, 1u, memory_order_relaxed);  // BUG
}
// body
y[0] = x[0];

//// atomic_long
// 64 bits are atomic for unsigned integers alone.
// because: no type for atomic<long>
// source: MSL 4.0 section 2.6
device atomic<long>* p = (device atomic<long>*)y;  // BUG
atomic_store_explicit(p, 1l, memory_order_relaxed);

//// atomic_of_plain
// Atomic functions take pointers to atomic objects.
// because: no matching function for call to 'atomic_fetch_add_explicit'
// source: MSL 4.0 section 6.15.4
// out: n uint32 32
atomic_fetch_add_explicit(n, 1u, memory_order_relaxed);  // BUG
y[0] = x[0];

//// atomic_order_acquire
// A load with another order than relaxed.
// because: atomic_load_explicit takes memory_order_relaxed
// source: MSL 4.0 section 6.15.1 (memory order)
threadgroup atomic_uint n;
y[0] = x[0] + atomic_load_explicit(&n, memory_order_acquire);  // BUG

//// atomic_order_named
// A store with an order that a constant names.
// because: atomic_store_explicit takes memory_order_relaxed
// source: MSL 4.0 section 6.15.1 (memory order)
threadgroup atomic_int n;
constexpr memory_order order = memory_order_release;
atomic_store_explicit(&n, 1, order);  // BUG
y[0] = x[0];

//// atomic_order_sequential
// An addition in sequentially consistent order.
// because: atomic_fetch_add_explicit takes memory_order_relaxed
// source: MSL 4.0 section 6.15.1 (memory order)
device atomic_uint* n = (device atomic_uint*)y;
atomic_fetch_add_explicit(n, 1u, memory_order_seq_cst);  // BUG

//// atomic_plain_add
// An atomic object is changed by atomic functions only.
// because: no viable overloaded '+='
// source: MSL 4.0 section 2.6
threadgroup atomic_uint count;
count += 1u;  // BUG
y[0] = x[0];

//// atomic_short
// There is no atomic of 16 bits.
// because: no type for atomic<short>
// source: MSL 4.0 section 2.6
device atomic<short>* p = (device atomic<short>*)y;  // BUG
atomic_fetch_add_explicit(p, short(1), memory_order_relaxed);

//// atomic_ulong_add
// Unsigned integers of 64 bits have a minimum and a maximum alone.
// because: no matching function for call to 'atomic_fetch_add_explicit'
// source: MSL 4.0 section 6.15.4.6; slang and other users of the Metal toolchain
device atomic_ulong* p = (device atomic_ulong*)y;
atomic_fetch_add_explicit(p, 1ul, memory_order_relaxed);  // BUG

//// atomic_without_order
// The memory order is not optional.
// because: no matching function for call to 'atomic_fetch_add_explicit'
// source: MSL 4.0 section 6.15.4
threadgroup atomic_uint count;
atomic_fetch_add_explicit(&count, 1u);  // BUG
y[0] = x[0];

//// attribute_after_parameters
// An attribute behind the parameter list belongs to the function's type.
// because: 'max_total_threads_per_threadgroup' attribute cannot be applied to types
// source: C++14 [dcl.fct]; public records of Apple's compiler
// header
kernel void other(device float* y [[buffer(0)]])
    [[max_total_threads_per_threadgroup(64)]]  // BUG
{
  y[0] = 1;
}
// body
y[0] = x[0];

//// attribute_after_result
// An attribute behind the result's type belongs to that type.
// because: 'max_total_threads_per_threadgroup' attribute cannot be applied to types
// source: C++14 [dcl.spec]
// header
kernel void [[max_total_threads_per_threadgroup(64)]] other(device float* y [[buffer(0)]]) {  // BUG
  y[0] = 1;
}
// body
y[0] = x[0];

//// attribute_between_static
// An attribute between static and the type.
// because: an attribute list cannot appear here
// source: C++14 [dcl.spec]
// header
static [[maybe_unused]] inline float one() { return 1; }  // BUG
// body
y[0] = x[0] + one();

//// attribute_between_words
// An attribute between the words of a declaration.
// because: an attribute list cannot appear here
// source: C++14 [dcl.spec]; public records of Apple's compiler
// header
kernel
[[max_total_threads_per_threadgroup(64)]]  // BUG
void other(device float* y [[buffer(0)]]) {
  y[0] = 1;
}
// body
y[0] = x[0];

//// attribute_kernel_after_parameters
// [[kernel]] behind the parameter list, in one list with another attribute.
// because: 'kernel' attribute cannot be applied to types
// source: C++14 [dcl.fct]
// header
void other(device float* y [[buffer(0)]]) [[kernel, max_total_threads_per_threadgroup(64)]] {  // BUG
  y[0] = 1;
}
// body
y[0] = x[0];

//// barrier_integer_flags
// mem_flags is an enum class.
// because: no matching function for call to 'threadgroup_barrier'
// source: MSL 4.0 table 6.13
threadgroup_barrier(2);  // BUG
y[0] = x[0];

//// barrier_without_flags
// A barrier names the memory it orders.
// because: too few arguments to function call
// source: MSL 4.0 table 6.12
threadgroup_barrier();  // BUG
y[0] = x[0];

//// bfloat_argument_float
// A float is passed where bfloat is expected.
// because: no matching function for call to 'keep'
// source: MSL 4.0 section 2.22
// header
bfloat keep(bfloat v) { return v; }
// body
y[0] = keep(x[0]);  // BUG

//// bfloat_assign_float
// A float is assigned to a bfloat.
// because: assigning to 'bfloat' from incompatible type 'float'
// source: MSL 4.0 section 2.22; pytorch/executorch issue 16984
bfloat b = bfloat(1.0f);
b = x[0];  // BUG
y[0] = b;

//// bfloat_compound_float
// bfloat += float computes in float and converts back implicitly.
// because: assigning to 'bfloat' from incompatible type 'float'
// source: MSL 4.0 sections 2.22 and 3.1
bfloat b = bfloat(1.0f);
b += x[0];  // BUG
y[0] = b;

//// bfloat_from_float
// A float initialises a bfloat without a cast.
// because: cannot initialize a variable of type 'bfloat' with an rvalue of type 'float'
// source: MSL 4.0 section 2.22; tracel-ai/cubecl issue 1522
bfloat b = x[0] * 2.0f;  // BUG
y[0] = b;

//// bfloat_from_half
// half does not convert to bfloat implicitly.
// because: cannot initialize a variable of type 'bfloat' with an lvalue of type 'half'
// source: MSL 4.0 section 2.22
half h = half(x[0]);
bfloat b = h;  // BUG
y[0] = b;

//// bfloat_from_literal
// A plain literal is a float, so it does not fit a bfloat either.
// because: float literals need bfloat(...)
// source: MSL 4.0 section 2.22; tracel-ai/cubecl issue 1201
bfloat b = 0.0;  // BUG
y[0] = b;

//// bfloat_output_from_float
// The output element is bfloat, the accumulator float: the most common slip in bf16 kernels.
// because: assigning to 'bfloat' from incompatible type 'float'
// source: MSL 4.0 section 2.22; pytorch/executorch issue 16984
// out: z bfloat16 32
float acc = x[0] + x[1];
z[0] = acc;  // BUG
y[0] = acc;

//// bfloat_plus_half
// The operators do not mix bfloat and half.
// because: invalid operands to binary expression ('bfloat' and 'half')
// source: MSL 4.0 section 3.1 item 1
bfloat b = bfloat(x[0]);
half h = half(x[1]);
y[0] = float(b + h);  // BUG

//// bfloat_return_float
// A function that returns bfloat returns a float expression.
// because: cannot initialize return object of type 'bfloat' with an rvalue of type 'float'
// source: MSL 4.0 section 2.22
// header
bfloat twice(bfloat v) {
  return float(v) * 2.0f;  // BUG
}
// body
y[0] = twice(bfloat(x[0]));

//// bfloat_to_half
// bfloat does not convert to half implicitly.
// because: cannot initialize a variable of type 'half' with an lvalue of type 'bfloat'
// source: MSL 4.0 section 2.22
bfloat b = bfloat(x[0]);
half h = b;  // BUG
y[0] = h;

//// cast_between_spaces
// A C-style cast does not bridge address spaces.
// because: C-style cast converts between mismatching address spaces
// source: MSL 4.0 section 4 (the address spaces are disjoint)
float v = x[0];
y[0] = *(device float*)&v;  // BUG

//// cast_between_spaces_by_alias
// A cast from device to constant memory by the name of the type.
// because: C-style cast converts between mismatching address spaces
// source: MSL 4.0 section 4
using Table = const constant float*;
Table t = (Table)x;  // BUG
y[0] = t[1];

//// cast_constant_to_device
// A C-style cast from constant to device memory.
// because: C-style cast converts between mismatching address spaces
// source: MSL 4.0 section 4
// header
constant float table[2] = {1, 2};
// body
const device float* p = (const device float*)table;  // BUG
y[0] = p[1] + x[0];

//// cast_device_to_constant
// A C-style cast from device to constant memory.
// because: C-style cast converts between mismatching address spaces
// source: MSL 4.0 section 4; public records of Apple's compiler
constant float* p = (constant float*)x;  // BUG
y[0] = p[0];

//// cast_reinterpret_between_spaces
// reinterpret_cast from device to threadgroup memory.
// because: reinterpret_cast converts between mismatching address spaces
// source: MSL 4.0 section 4
const threadgroup uint* p = reinterpret_cast<const threadgroup uint*>(x);  // BUG
y[0] = p[0];

//// choice_by_bool_vector
// A variable of type bool2 as a condition.
// because: value of type 'bool2' is not contextually convertible to 'bool'
// source: MSL 4.0 section 3.1
float2 a = float2(x[0], x[1]);
bool2 low = a < float2(1);
float2 m = low ? a : float2(0);  // BUG
y[0] = m.x;

//// choice_by_vector
// The condition of a choice is a scalar: a comparison of vectors is none.
// because: value of type 'bool4' is not contextually convertible to 'bool'
// source: MSL 4.0 section 3.1
float4 a = float4(x[0]), b = float4(x[1]);
float4 m = a < b ? a : b;  // BUG
y[0] = m.x;

//// choice_by_vector_of_numbers
// A vector of integers as a condition, scalars on both sides.
// because: value of type 'int2' is not contextually convertible to 'bool'
// source: MSL 4.0 section 3.1
int2 a = int2(x[0], x[1]);
y[0] = (a & 1) ? 1.0f : 2.0f;  // BUG

//// choice_in_template
// A comparison of vectors as a condition, in a template.
// because: value of type 'bool3' is not contextually convertible to 'bool'
// source: MSL 4.0 section 3.1
// header
template <typename T> T smaller(T a, T b) { return a < b ? a : b; }  // BUG
// body
y[0] = smaller(float3(x[0]), float3(x[1])).x;

//// constant_not_initialised
// A constant at program scope needs a value.
// because: variable in constant address space must be initialized
// source: MSL 4.0 section 4.2
// header
constant float factor;  // BUG
// body
y[0] = x[0] * factor;

//// constant_to_device_pointer
// A constant buffer is passed where device memory is expected.
// because: no matching function for call to 'first'
// source: MSL 4.0 section 4 (the address spaces are disjoint)
// in: k float32 4
// header
float first(const device float* p) { return *p; }
// body
y[0] = x[0] + first(k);  // BUG

//// constexpr_global_without_space
// constexpr does not replace constant at program scope.
// because: program scope variable must reside in constant address space
// source: MSL 4.0 section 4; AdaptiveCpp/AdaptiveCpp issue 864
// header
constexpr float factor = 2.0f;  // BUG
// body
y[0] = x[0] * factor;

//// cross_of_two
// cross takes three components.
// because: no matching function for call to 'cross'
// source: MSL 4.0 table 6.11
y[0] = cross(float2(x[0]), float2(x[1])).x;  // BUG

//// delete_expression
// No heap to give back to.
// because: delete is not supported
// source: MSL 4.0 section 1.5.4
float v = x[0];
thread float* p = &v;
delete p;  // BUG
y[0] = v;

//// device_local
// A local variable in device memory.
// because: automatic variable qualified with an address space
// source: MSL 4.0 section 4.1 (device memory is allocated by the app)
device float3 v(0);  // BUG
y[0] = x[0] + v.x;

//// device_to_thread_pointer
// A device pointer is stored in a thread pointer.
// because: cannot initialize a variable of type 'const thread float *' with an lvalue of type 'const device float *'
// source: MSL 4.0 section 4 (the address spaces are disjoint)
const thread float* p = x;  // BUG
y[0] = *p;

//// dot_of_integers
// dot takes floating-point vectors.
// because: no matching function for call to 'dot'
// source: MSL 4.0 section 6.8
y[0] = x[0] + dot(int4(1), int4(2));  // BUG

//// dynamic_cast
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

//// float_bitwise
// & takes integers.
// because: invalid operands to binary expression ('float' and 'int')
// source: MSL 4.0 section 3.1 item 7
y[0] = x[0] & 1;  // BUG

//// float_complement
// ~ takes integers.
// because: invalid argument type 'float' to unary expression
// source: MSL 4.0 section 3.1 item 11
y[0] = ~x[0];  // BUG

//// float_remainder
// % takes integers.
// because: invalid operands to binary expression ('float' and 'float')
// source: MSL 4.0 section 3.1 item 2
y[0] = x[0] % 2.0f;  // BUG

//// float_shift
// << takes integers.
// because: invalid operands to binary expression ('float' and 'int')
// source: MSL 4.0 section 3.1 item 11
y[0] = x[0] << 1;  // BUG

//// function_returns_nothing
// A return without a value from a function that has one.
// because: non-void function should return a value
// source: C++14 [stmt.return]
// header
float sign_of(float v) {
  if (v > 0) return 1;
  return;  // BUG
}
// body
y[0] = sign_of(x[0]);

//// global_without_space
// A variable at program scope outside constant memory.
// because: program scope variable must reside in constant address space
// source: MSL 4.0 section 4
// header
float factor = 2.0f;  // BUG
// body
y[0] = x[0] * factor;

//// goto_statement
// No goto.
// because: goto is not supported
// source: MSL 4.0 section 1.5.4
float v = x[0];
again:
v *= 0.5f;
if (v > 1.0f) {
  goto again;  // BUG
}
y[0] = v;

//// kernel_calls_kernel
// A kernel cannot call a kernel.
// because: kernel functions cannot call one another
// source: MSL 4.0 section 5.1
// header
[[kernel]] void second(device float* p [[buffer(0)]]) {
  p[0] = 1.0f;
}
// body
second(y);  // BUG

//// kernel_duplicate_buffer
// Two arguments at one buffer index.
// because: cannot reserve 'buffer' resource location at index 0
// source: MSL 4.0 section 5.2.1
// header
[[kernel]] void second(device float* p [[buffer(0)]], device float* q [[buffer(0)]]) {  // BUG
  p[0] = q[0];
}
// body
y[0] = x[0];

//// kernel_pointer_without_space
// A kernel's pointer argument names its address space.
// because: pointer type must have explicit address space qualifier
// source: MSL 4.0 sections 1.5.4 and 4
// header
[[kernel]] void second(float* p [[buffer(0)]]) {  // BUG
  p[0] = 1.0f;
}
// body
y[0] = x[0];

//// kernel_returns_one
// A value is returned from a kernel.
// because: void function should not return a value
// source: MSL 4.0 section 5.1.3 (a kernel returns void)
if (x[0] > 1) return 1;  // BUG
y[0] = x[0];

//// kernel_returns_value
// A kernel returns void.
// because: invalid return type 'int' for kernel function
// source: MSL 4.0 section 5.1.3
// header
[[kernel]] int second(device float* p [[buffer(0)]]) {  // BUG
  return int(p[0]);
}
// body
y[0] = x[0];

//// libc_function
// printf is not declared.
// because: use of undeclared identifier 'printf'
// source: MSL 4.0 sections 1.5.4 and 6.19
printf("%f", x[0]);  // BUG
y[0] = x[0];

//// main_function
// No function is called main.
// because: non-qualified function cannot be called 'main'
// source: MSL 4.0 section 1.5.4
// header
int main() {  // BUG
  return 0;
}
// body
y[0] = x[0];

//// matrix_divide
// Matrices are not divided.
// because: invalid operands to binary expression ('float2x2' and 'float2x2')
// source: MSL 4.0 section 3.2
float2x2 m = float2x2(x[0]);
float2x2 n = m / m;  // BUG
y[0] = n[0][0];

//// matrix_from_scalar
// A scalar does not become a matrix implicitly.
// because: no viable conversion from 'float' to 'float2x2'
// source: MSL 4.0 section 2.22
float2x2 m = x[0];  // BUG
y[0] = m[0][0];

//// matrix_mixed_constructor
// A matrix is not built from a mixture of vectors and scalars.
// because: no matching constructor
// source: MSL 4.0 section 2.3.2
float2 c = float2(x[0]);
float2x3 m = float2x3(c, 1.0f, c, 1.0f);  // BUG
y[0] = m[0][0];

//// matrix_swizzle
// A matrix has no components by letter.
// because: no member named 'x' in 'metal::matrix<float, 2, 2>'
// source: MSL 4.0 section 2.3.1
float2x2 m = float2x2(x[0]);
y[0] = m.x;  // BUG

//// matrix_vector_mismatch
// Three columns times a vector of two.
// because: invalid operands to binary expression ('float3x3' and 'float2')
// source: MSL 4.0 section 3.2
float3x3 m = float3x3(1.0f);
float3 v = m * float2(x[0]);  // BUG
y[0] = v.x;

//// max_of_vector_kinds
// max of a float4 and a half4: vectors do not convert.
// because: no vector conversion makes the arguments alike
// source: MSL 4.0 section 2.22
y[0] = max(float4(x[0]), half4(1.0h)).x;  // BUG

//// missing_attribute
// An attribute of the kernel is not a function.
// because: called object type 'uint3' is not a function
// source: MLX metal_kernel signature (attributes are parameters)
uint i = thread_position_in_grid(0);  // BUG
y[i] = x[i];

//// missing_semicolon
// A statement without its end.
// because: expected ';' at end of declaration
// source: C++14 6
float v = x[0]  // BUG
y[0] = v;

//// name_bfloat
// bfloat is a type of the language.
// because: cannot combine with previous declaration specifier
// source: MSL 4.0 section 2.1
float bfloat = x[0];  // BUG
y[0] = bfloat;

//// name_fragment_member
// A member is called fragment.
// because: expected member name or ';' after declaration specifiers
// source: MSL 4.0 section 5.1 (function qualifiers)
// header
struct Part {
  float fragment;  // BUG
};
// body
y[0] = x[0];

//// name_half
// half is a keyword.
// because: cannot combine with previous declaration specifier
// source: MSL 4.0 section 2.1; public records of Apple's compiler
uint half = thread_position_in_grid.x >> 1;  // BUG
y[half] = x[0];

//// name_half_member
// A member called half.
// because: cannot combine with previous declaration specifier
// source: MSL 4.0 section 2.1
// header
struct Span {
  float whole;
  float half;  // BUG
};
// body
y[0] = x[0];

//// name_half_parameter
// A parameter called half.
// because: cannot combine with previous declaration specifier
// source: MSL 4.0 section 2.1
// header
float scaled(float v, float half) { return v * half; }  // BUG
// body
y[0] = scaled(x[0], 0.5f);

//// name_kernel_parameter
// A parameter is called kernel.
// because: expected ')'
// source: MSL 4.0 section 5.1 (function qualifiers)
// header
float twice(float kernel) { return 2 * kernel; }  // BUG
// body
y[0] = twice(x[0]);

//// name_vertex_variable
// A variable is called vertex.
// because: expected unqualified-id
// source: MSL 4.0 section 5.1 (function qualifiers)
float vertex = x[0];  // BUG
y[0] = vertex;

//// narrowing_braces
// Braces do not narrow.
// because: type 'const device float' cannot be narrowed to 'int' in initializer list
// source: C++14 8.5.4
int n{x[0]};  // BUG
y[0] = float(n);

//// new_expression
// No heap.
// because: new is not supported
// source: MSL 4.0 section 1.5.4
thread float* p = new float(x[0]);  // BUG
y[0] = *p;

//// parameter_struct_by_value
// A struct as a parameter by value.
// because: invalid type 'Sizes' for input declaration in a kernel function
// source: MSL 4.0 section 5.2.3
// header
struct Sizes { uint n, m; };
kernel void other(
    device float* y [[buffer(0)]],
    Sizes sizes,  // BUG
    uint i [[thread_position_in_grid]]) {
  y[i] = sizes.n;
}
// body
y[0] = x[0];

//// parameter_with_unknown_attribute
// An attribute that Metal does not know is ignored.
// because: invalid type 'uint' for input declaration in a kernel function
// source: MSL 4.0 section 5.2.3; public records of Apple's compiler
// header
kernel void other(
    device float* y [[buffer(0)]],
    uint n [[thread_count_in_grid]]) {  // BUG
  y[0] = n;
}
// body
y[0] = x[0];

//// parameter_without_attribute
// A scalar parameter of a kernel without an attribute.
// because: invalid type 'uint' for input declaration in a kernel function
// source: MSL 4.0 section 5.2.3; public records of Apple's compiler
// header
kernel void other(
    device float* y [[buffer(0)]],
    uint n) {  // BUG
  y[0] = n;
}
// body
y[0] = x[0];

//// pointer_cast_without_space
// A cast to a pointer without an address space.
// because: pointer type must have explicit address space qualifier
// source: MSL 4.0 section 4; hashcat/hashcat pull request 4237
y[0] = *(const float*)x;  // BUG

//// pointer_member_without_space
// A pointer member without an address space.
// because: pointer type must have explicit address space qualifier
// source: MSL 4.0 section 4
// header
struct View {
  const float* data;  // BUG
};
// body
View v;
y[0] = x[0];

//// pointer_parameter_without_space
// A pointer parameter without an address space.
// because: pointer type must have explicit address space qualifier
// source: MSL 4.0 section 4; hashcat/hashcat pull request 3540
// header
float first(const float* p) {  // BUG
  return p[0];
}
// body
y[0] = first(x);

//// pointer_without_space
// A pointer variable without an address space.
// because: pointer type must have explicit address space qualifier
// source: MSL 4.0 section 4; shader-slang/slang issue 4129
float v = x[0];
float* p = &v;  // BUG
y[0] = *p;

//// position_mixed
// One position is a scalar, another a vector.
// because: expecting input declarations with either all scalar types or all vector types
// source: MSL 4.0 section 5.2.3.6; public records of Apple's compiler
// header
kernel void other(  // BUG
    device float* y [[buffer(0)]],
    uint i [[thread_position_in_grid]],
    uint3 n [[threads_per_threadgroup]]) {
  y[i] = n.x;
}
// body
y[0] = x[0];

//// position_of_float
// A position is an integer.
// because: invalid type 'float' for input declaration in a kernel function
// source: MSL 4.0 table 5.8
// header
kernel void other(
    device float* y [[buffer(0)]],
    float i [[thread_position_in_grid]]) {  // BUG
  y[0] = i;
}
// body
y[0] = x[0];

//// position_of_four
// A position of four components.
// because: invalid type 'uint4' for input declaration in a kernel function
// source: MSL 4.0 table 5.8
// header
kernel void other(device float* y [[buffer(0)]], uint4 at [[thread_position_in_grid]]) {  // BUG
  y[at.x] = 1;
}
// body
y[0] = x[0];

//// position_of_four_short
// A size of four short components.
// because: invalid type 'ushort4' for input declaration in a kernel function
// source: MSL 4.0 table 5.8
// header
kernel void other(device float* y [[buffer(0)]], ushort4 n [[threads_per_threadgroup]]) {  // BUG
  y[0] = n.x;
}
// body
y[0] = x[0];

//// position_of_four_template
// A position of four components, spelled as a template.
// because: invalid type for input declaration in a kernel function
// source: MSL 4.0 table 5.8
// header
kernel void other(device float* y [[buffer(0)]],
                  vec<uint, 4> at [[threadgroup_position_in_grid]]) {  // BUG
  y[at.x] = 1;
}
// body
y[0] = x[0];

//// position_of_short_and_vector
// A ushort beside a vector of ushort.
// because: expecting input declarations with either all scalar types or all vector types
// source: MSL 4.0 section 5.2.3.6
// header
[[kernel]] void other(device float* y [[buffer(0)]], ushort3 n [[threads_per_grid]],  // BUG
                      ushort i [[thread_position_in_threadgroup]]) {
  y[i] = n.x;
}
// body
y[0] = x[0];

//// position_of_two_sizes
// Vectors of different sizes for positions.
// because: expecting input declarations with either all scalar types or all vector types
// source: MSL 4.0 section 5.2.3.6
// header
kernel void other(device float* y [[buffer(0)]],  // BUG
                  uint2 i [[thread_position_in_grid]],
                  uint3 group [[threadgroup_position_in_grid]]) {
  y[i.x] = group.x;
}
// body
y[0] = x[0];

//// reference_without_space
// A reference parameter without an address space.
// because: reference type must have explicit address space qualifier
// source: MSL 4.0 section 4
// header
void bump(float& v) {  // BUG
  v += 1.0f;
}
// body
float v = x[0];
bump(v);
y[0] = v;

//// register_storage
// No register variables.
// because: Metal does not support the 'register' storage class specifier
// source: MSL 4.0 section 1.5.4
register float v = x[0];  // BUG
y[0] = v;

//// simd_sum_long
// SIMD reductions do not take 64-bit integers.
// because: call to 'simd_sum' has no match for 64-bit integers
// source: MSL 4.0 section 6.9.2 (not size_t); MLX reduces 8-byte types by shuffles of halves
ulong n = simd_sum(ulong(x[0]));  // BUG
y[0] = float(n);

//// simd_sum_struct
// SIMD functions take scalars and vectors.
// because: no matching function for call to 'simd_sum'
// source: MSL 4.0 section 6.9.2
// header
struct Pair {
  float a;
  float b;
};
// body
Pair p = {x[0], x[1]};
y[0] = simd_sum(p).a;  // BUG

//// simd_xor_float
// Bitwise reductions take integers.
// because: no matching function for call to 'simd_xor'
// source: MSL 4.0 table 6.15
y[0] = simd_xor(x[0]);  // BUG

//// simdgroup_load_private
// Matrices load from device or threadgroup memory.
// because: no matching function for call to 'simdgroup_load'
// source: MSL 4.0 table 6.9
float v[64];
v[0] = x[0];
simdgroup_float8x8 m;
simdgroup_load(m, v, 8);  // BUG
y[0] = v[0];

//// simdgroup_load_wrong_type
// A float matrix does not load from half memory.
// because: no matching function for call to 'simdgroup_load'
// source: MSL 4.0 table 6.9
// in: h float16 64
simdgroup_float8x8 m;
simdgroup_load(m, h, 8);  // BUG
y[0] = x[0];

//// simdgroup_matrix_int
// simdgroup_matrix holds half, bfloat or float.
// because: simdgroup_matrix<int, 8, 8> is not supported
// source: MSL 4.0 section 2.4
simdgroup_matrix<int, 8, 8> m;  // BUG
simdgroup_multiply(m, m, m);
y[0] = x[0];

//// simdgroup_matrix_size
// simdgroup_matrix is 8 by 8.
// because: simdgroup_matrix<float, 16, 16> is not supported
// source: MSL 4.0 section 2.4
simdgroup_matrix<float, 16, 16> m;  // BUG
simdgroup_multiply(m, m, m);
y[0] = x[0];

//// space_lost_in_array_reference
// A reference to an array in threadgroup memory is one to thread memory.
// because: reference of type 'thread float (&)[4]' cannot bind
// source: MSL 4.0 section 4
// header
float third(const thread float (&v)[4]) { return v[2]; }
// body
threadgroup float tile[4];
tile[thread_position_in_threadgroup.x % 4] = x[0];
y[0] = third(tile);  // BUG

//// space_lost_in_const_reference
// A constant reference to thread memory is bound to an element of device memory.
// because: reference of type 'const thread float &' cannot bind to a device value
// source: MSL 4.0 section 4
const thread float& v = x[0];  // BUG
y[0] = v;

//// space_lost_in_method
// A method without an address space is called on an object in device memory.
// because: 'this' argument has type 'device Cell', but the function is not marked
// source: MSL 4.0 section 4.7 (methods are for thread memory by default)
// header
struct Cell {
  float v;
  float twice() const { return 2 * v; }
};
// body
const device Cell* c = (const device Cell*)x;
y[0] = c->twice();  // BUG

//// space_lost_in_method_of_template
// A method of a class template, marked for thread memory alone.
// because: 'this' argument has type 'device Box<float>', but the function is not marked
// source: MSL 4.0 section 4.7
// header
template <typename T> struct Box {
  T v;
  T get() const thread { return v; }
};
// body
const device Box<float>* b = (const device Box<float>*)x;
y[0] = b[1].get();  // BUG

//// space_lost_in_method_threadgroup
// A method without an address space changes an object in threadgroup memory.
// because: 'this' argument has type 'threadgroup Sum', but the function is not marked
// source: MSL 4.0 section 4.7
// header
struct Sum {
  float v;
  void add(float a) { v += a; }
};
// body
threadgroup Sum s;
s.v = 0;
s.add(x[0]);  // BUG
y[0] = s.v;

//// space_lost_in_reference
// A thread reference is bound to an element of device memory.
// because: reference of type 'thread float &' cannot bind
// source: MSL 4.0 section 4
thread float& v = y[0];  // BUG
v = x[0];

//// space_lost_in_template
// A device element is bound to a thread reference whose type is deduced.
// because: no matching function for call to 'bump'
// source: MSL 4.0 section 4 (the address spaces are disjoint)
// header
template <typename T> void bump(thread T& v) { v += 1; }
// body
bump(y[0]);  // BUG

//// space_lost_in_template_argument
// The template argument is named, the address space is another.
// because: no matching function for call to 'first'
// source: MSL 4.0 section 4
// header
template <typename T> T first(const thread T* p) { return p[0]; }
// body
y[0] = first<float>(x);  // BUG

//// space_lost_in_template_pointer
// A threadgroup pointer is given to a function of thread pointers to any type.
// because: no matching function for call to 'first'
// source: MSL 4.0 section 4
// header
template <typename T> T first(const thread T* p) { return p[0]; }
// body
threadgroup float tile[32];
tile[thread_position_in_threadgroup.x] = x[0];
y[0] = first(tile);  // BUG

//// static_assertion
// A failed static assertion, as of a template argument out of range.
// because: static_assert failed
// source: C++14 7
static_assert(sizeof(float3) == 12, "packed_float3 is the type of 12 bytes");  // BUG
y[0] = x[0];

//// static_local
// No static locals.
// because: variables in function scope cannot be declared static
// source: MSL 4.0 section 4 (objects live in an address space of the launch)
static int count = 0;  // BUG
count += 1;
y[0] = x[0] + float(count);

//// std_header
// Nor do its headers.
// because: 'vector' file not found
// source: MSL 4.0 section 1.5.4
// header
#include <vector>  // BUG
// body
y[0] = x[0];

//// std_namespace
// The C++ standard library does not exist.
// because: use of undeclared identifier 'std'
// source: MSL 4.0 section 1.5.4
y[0] = std::max(x[0], x[1]);  // BUG

//// string_pointer_without_space
// A pointer to a string literal without an address space.
// because: pointer type must have explicit address space qualifier
// source: MSL 4.0 section 4
const char* name = "k";  // BUG
y[0] = x[0] + float(name[0]);

//// struct_from_scalar
// A scalar is not cast to a struct.
// because: no matching conversion for C-style cast from 'float' to 'S'
// source: C++14 5.4
// header
struct S {
  float a;
};
// body
S s = (S)x[0];  // BUG
y[0] = s.a;

//// swizzle_address
// A swizzle has no address.
// because: address of vector element requested
// source: MSL 4.0 section 2.2.1
float4 v = float4(x[0]);
thread float2* p = &v.xy;  // BUG
y[0] = p->x;

//// swizzle_beyond
// A float2 has no z.
// because: vector component access exceeds type 'float2'
// source: MSL 4.0 section 2.2.1
float2 v = float2(x[0]);
y[0] = v.z;  // BUG

//// swizzle_count_store
// Two components take two values.
// because: assigning to 'float2' from incompatible type 'float4'
// source: MSL 4.0 section 2.2.1
float4 v = float4(x[0]);
v.xy = float4(1.0f);  // BUG
y[0] = v.x;

//// swizzle_duplicate_store
// One component twice on the left.
// because: vector is not assignable (contains duplicate components)
// source: MSL 4.0 section 2.2.1
float4 v = float4(x[0]);
v.xx = float2(1.0f);  // BUG
y[0] = v.x;

//// swizzle_mixed
// xyzw and rgba do not mix.
// because: illegal vector component name 'g'
// source: MSL 4.0 section 2.2.1
float4 v = float4(x[0]);
y[0] = v.xg.x;  // BUG

//// swizzle_reference
// A component cannot be bound to a reference.
// because: non-const reference cannot bind to vector element
// source: MSL 4.0 section 2.2.1
// header
void bump(thread float& v) { v += 1.0f; }
// body
float4 v = float4(x[0]);
bump(v.x);  // BUG
y[0] = v.x;

//// swizzle_store_to_rvalue
// A swizzle of a value is not a place.
// because: expression is not assignable
// source: C++14 5.17
float4 v = float4(x[0]);
(v + 1.0f).x = 2.0f;  // BUG
y[0] = v.x;

//// thread_local_storage
// No thread_local.
// because: 'thread_local' is not supported in Metal
// source: MSL 4.0 section 1.5.4
thread_local float v = 1.0f;  // BUG
y[0] = x[0] + v;

//// thread_to_device_pointer
// The address of a local is stored in a device pointer.
// because: cannot initialize a variable of type 'device float *' with an rvalue of type 'thread float *'
// source: MSL 4.0 section 4 (the address spaces are disjoint)
float v = x[0];
device float* p = &v;  // BUG
y[0] = *p;

//// threadgroup_global
// Threadgroup memory at program scope.
// because: program scope variable must reside in constant address space
// source: MSL 4.0 section 4
// header
threadgroup float tile[32];  // BUG
// body
y[0] = x[0];

//// threadgroup_in_function
// Threadgroup variables are allocated in kernels only.
// because: threadgroup variable outside a kernel
// source: MSL 4.0 section 4.4
// header
float share(float v, uint i) {
  threadgroup float tile[32];  // BUG
  tile[i] = v;
  return tile[i];
}
// body
y[0] = share(x[0], thread_position_in_threadgroup.x);

//// threadgroup_to_device_pointer
// A threadgroup array is passed to a function that takes a device pointer.
// because: no matching function for call to 'first'
// source: MSL 4.0 section 4 (the address spaces are disjoint)
// header
float first(const device float* p) { return *p; }
// body
threadgroup float tile[32];
tile[thread_position_in_threadgroup.x] = x[0];
y[0] = first(tile);  // BUG

//// threadgroup_to_thread_reference
// A threadgroup element is bound to a thread reference.
// because: no matching function for call to 'bump'
// source: MSL 4.0 section 4 (the address spaces are disjoint)
// header
void bump(thread float& v) { v += 1.0f; }
// body
threadgroup float tile[32];
tile[thread_position_in_threadgroup.x] = x[0];
bump(tile[0]);  // BUG
y[0] = x[0];

//// throw_expression
// No exceptions: throw.
// because: exceptions are not supported
// source: MSL 4.0 section 1.5.4
if (x[0] < 0.0f) {
  throw 1;  // BUG
}
y[0] = x[0];

//// try_block
// No exceptions: try.
// because: exceptions are not supported
// source: MSL 4.0 section 1.5.4
try {  // BUG
  y[0] = x[0];
} catch (...) {
  y[0] = 0.0f;
}

//// type_double
// There is no double.
// because: 'double' is not supported in Metal
// source: MSL 4.0 section 2.1; apache/tvm pull request 7118
double d = x[0];  // BUG
y[0] = float(d);

//// type_double_cast
// A cast to double.
// because: 'double' is not supported in Metal
// source: MSL 4.0 section 2.1
y[0] = float((double)x[0] * 2.0f);  // BUG

//// type_long_double
// There is no long double.
// because: 'long double' is not supported in Metal
// source: MSL 4.0 section 2.1
long double d = x[0];  // BUG
y[0] = float(d);

//// type_long_long
// There is no long long: long has 64 bits already.
// because: 'long long' is not supported in Metal
// source: MSL 4.0 section 2.1
long long n = 1;  // BUG
y[0] = x[0] + float(n);

//// type_unsigned_long_long
// There is no unsigned long long.
// because: 'unsigned long long' is not supported in Metal
// source: MSL 4.0 section 2.1
unsigned long long n = 1;  // BUG
y[0] = x[0] + float(n);

//// typeid
// No type identification at run time.
// because: typeid is not supported
// source: MSL 4.0 section 1.5.4
bool same = &typeid(x[0]) == &typeid(y[0]);  // BUG
y[0] = x[0] + float(same);

//// undeclared_name
// A misspelt variable.
// because: use of undeclared identifier 'acc'
// source: C++14 3.4
y[0] = x[0] + acc;  // BUG

//// undefined_function
// A function that is declared and never defined.
// because: undefined symbol when the pipeline is built
// source: C++14 3.2
// line: none
// header
float scale(float v);
// body
y[0] = scale(x[0]);

//// unknown_type
// There is no float5.
// because: unknown type name 'float5'
// source: MSL 4.0 section 2.2
float5 v;  // BUG
y[0] = x[0];

//// variable_length_array
// The size of an array has to be a constant expression.
// because: variable length arrays are not allowed
// source: C++14 8.3.4
int n = int(x[0]);
float v[n];  // BUG
v[0] = x[0];
y[0] = v[0];

//// vector_assigned_int
// An assignment converts no vector.
// because: assigning to 'float4' from incompatible type 'int4'
// source: MSL 4.0 sections 2.22 and 3.1
uint i = thread_position_in_grid.x;
float4 v = float4(x[i]);
int4 w = int4(1);
v = w; // BUG
y[i] = v.x;

//// vector_bool_to_float
// A bool vector does not become a float vector.
// because: cannot initialize a variable of type 'float2' with an lvalue of type 'bool2'
// source: MSL 4.0 section 2.22
bool2 b = bool2(true, false);
float2 f = b;  // BUG
y[0] = x[0] + f.x;

//// vector_cast_to_scalar
// Not even by a cast.
// because: C-style cast from 'float3' to 'float' is not allowed
// source: MSL 4.0 section 2.22
float3 v = float3(x[0]);
y[0] = (float)v;  // BUG

//// vector_choice_of_types
// Both sides of a choice have one vector type.
// because: incompatible operand types ('float2' and 'int2')
// source: MSL 4.0 sections 2.22 and 3.1
uint i = thread_position_in_grid.x;
float2 v = i > 4 ? float2(x[i]) : int2(1); // BUG
y[i] = v.x;

//// vector_compound_of_int
// A compound assignment converts no vector either.
// because: invalid operands to binary expression ('float3' and 'int3')
// source: MSL 4.0 sections 2.22 and 3.1
uint i = thread_position_in_grid.x;
float3 v = float3(x[i]);
v *= int3(2); // BUG
y[i] = v.x;

//// vector_float_index
// A vector is indexed by an integer.
// because: array subscript is not an integer
// source: MSL 4.0 section 2.2.1
float4 v = float4(x[0]);
y[0] = v[0.5f];  // BUG

//// vector_float_plus_int
// Operands of different element types: nothing is converted, and no bits are reinterpreted.
// because: invalid operands to binary expression ('float4' and 'int4')
// source: MSL 4.0 sections 2.22 and 3.1
uint i = thread_position_in_grid.x;
float4 v = float4(x[i]) + int4(1); // BUG
y[i] = v.x;

//// vector_float_to_half
// Nor does float4 to half4.
// because: implicit conversions between vector types are not permitted
// source: MSL 4.0 section 2.22
half4 h = float4(x[0]);  // BUG
y[0] = float(h.x);

//// vector_half_and_short
// Two element types of one size.
// because: invalid operands to binary expression ('half2' and 'short2')
// source: MSL 4.0 sections 2.22 and 3.1
uint i = thread_position_in_grid.x;
half2 v = half2(x[i]) - short2(1); // BUG
y[i] = v.x;

//// vector_half_plus_float
// Nor do operands of different element types meet.
// because: invalid operands to binary expression ('half4' and 'float4')
// source: MSL 4.0 sections 2.22 and 3.1
half4 h = half4(1.0h);
float4 f = float4(x[0]);
y[0] = (h * f).x;  // BUG

//// vector_int_times_uint
// A signed and an unsigned vector are two types.
// because: invalid operands to binary expression ('int2' and 'uint2')
// source: MSL 4.0 sections 2.22 and 3.1
uint i = thread_position_in_grid.x;
int2 v = int2(int(i)) * uint2(i); // BUG
y[i] = v.x;

//// vector_int_to_float
// Vectors of different element types do not convert.
// because: implicit conversions between vector types are not permitted
// source: MSL 4.0 section 2.22
int4 i = int4(1);
float4 f = i;  // BUG
y[0] = x[0] + f.x;

//// vector_narrower
// A float4 does not become a float3.
// because: implicit conversions between vector types are not permitted
// source: MSL 4.0 section 2.22
float3 v = float4(x[0]);  // BUG
y[0] = v.x;

//// vector_of_matrix
// A vector is not built from a matrix.
// because: no matching constructor
// source: MSL 4.0 section 2.2.2
float4 v = float4(float2x2(1.0f), x[0], x[1]);  // BUG
y[0] = v.x;

//// vector_sizes_differ
// Operands of different lengths.
// because: invalid operands to binary expression ('float3' and 'float2')
// source: MSL 4.0 section 3.1
float3 v = float3(x[0]) * float2(x[1]);  // BUG
y[0] = v.x;

//// vector_to_scalar
// A vector does not become a scalar.
// because: cannot initialize a variable of type 'float' with a 'float4'
// source: MSL 4.0 section 2.22
float v = float4(x[0]);  // BUG
y[0] = v;

//// vector_too_few
// A constructor with too few components.
// because: too few elements in vector initialization
// source: MSL 4.0 section 2.2.2
float4 v = float4(x[0], x[1], x[2]);  // BUG
y[0] = v.x;

//// vector_too_many
// A constructor with too many components.
// because: excess elements in vector initializer
// source: MSL 4.0 section 2.2.2
float2 v = float2(x[0], x[1], x[2]);  // BUG
y[0] = v.x;

//// virtual_function
// No virtual functions.
// because: virtual functions are not supported
// source: MSL 4.0 section 1.5.4
// header
struct Shape {
  virtual float area() const { return 1.0f; }  // BUG
};
// body
Shape s;
y[0] = x[0] + s.area();

//// void_returns_value
// A helper without a result returns one.
// because: void function should not return a value
// source: C++14 [stmt.return]
// header
void put(device float* p, float v) { return *p = v; }  // BUG
// body
put(y, x[0]);

//// write_to_const_local
// A const local is assigned by swizzle.
// because: cannot assign to variable 'v' with const-qualified type
// source: C++14 7.1.6.1
const float4 v = float4(x[0]);
v.x = 1.0f;  // BUG
y[0] = v.x;

//// write_to_constant
// Constant memory is read-only.
// because: cannot assign to a variable in the constant address space
// source: MSL 4.0 section 4.2
// header
constant float table[2] = {1.0f, 2.0f};
// body
table[0] = x[0];  // BUG
y[0] = table[0];

//// write_to_input
// Inputs are const device pointers.
// because: cannot assign to a const-qualified element
// source: MLX metal_kernel signature (const device T*)
// in: w float32 32
w[0] = x[0];  // BUG
y[0] = x[0];

//// zero_length_array
// An array of no elements.
// because: zero-length arrays are not permitted in C++
// source: C++14 8.3.4
float v[0];  // BUG
y[0] = x[0] + float(sizeof(v));
