// Tables and constants at program scope live in constant memory.
// in: x uint32 8 = 0 1 2 3 3 2 1 0
// out: y float32 8 = 1.5 2.5 3.5 4.5 4.5 3.5 2.5 1.5
// grid: 8
// threadgroup: 8
// header
constant float table[4] = {1.0f, 2.0f, 3.0f, 4.0f};
constant constexpr float half_step = 0.5f;
enum class Mode : uint { off, on };
typedef float Real;
using Index = uint;
// body
Index i = thread_position_in_grid.x;
constexpr Mode mode = Mode::on;
Real v = table[x[i]];
y[i] = mode == Mode::on ? v + half_step : 0.0f;
