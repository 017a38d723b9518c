"""What MLX says when a call fails: its own prefixes, and the words of Metal and CUDA."""

_METAL = "[METAL] Command buffer execution failed: "
_BUILD = "[metal::Device] Unable to build metal library from source\n"

MACHINES = [
    _METAL + "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
    _METAL + "Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)",
    _METAL + "Ignored (for causing prior/excessive GPU errors) "
    "(00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)",
    _METAL + "Discarded (victim of GPU error/recovery) "
    "(00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)",
    "[metal::malloc] Resource limit (499000) exceeded.",
    "[malloc] Unable to allocate 1073741824 bytes.",
    "[malloc_or_wait] Unable to allocate 1073741824 bytes.",
    _BUILD + "Compiler encountered XPC_ERROR_CONNECTION_INTERRUPTED (is the OS shutting down?)",
    "[metal::Device] Unable to load kernel custom_kernel_a\n"
    "Compilation failed with XPC_ERROR_CONNECTION_INTERRUPTED on 3 try",
    "cudaMallocManaged failed: out of memory.",
    "cudaMallocAsync(&data, size, stream) failed: out of memory",
    "cudaGraphInstantiate(&exec, graph, nullptr, nullptr, 0) failed: out of memory",
    "cudaSetDevice(0) failed: CUDA-capable device(s) is/are busy or unavailable",
    "cudaGetDeviceCount(&count) failed: no CUDA-capable device is detected",
    "cudaStreamSynchronize(stream) failed: uncorrectable ECC error encountered",
    "cudaFree(data) failed: driver shutting down",
    _METAL + "Insufficient Permission (to submit GPU work from background) "
    "(00000006:kIOGPUCommandBufferCallbackErrorBackgroundExecutionNotPermitted)",
    "[metal::CommandEncoder] Failed to make new command queue.",
    "[metal::load_device] No Metal device available. This typically occurs in headless sessions.",
    "cublasLtCreate(&storage.handle) failed with code: 1.",
    "cublasLtMatmul( handle, desc, nullptr) failed with code: 3.",
    "cudnnCreate(&storage.handle) failed: CUDNN_STATUS_ALLOC_FAILED.",
    "graph.build() failed: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED.",
    "nvrtcCreateProgram(&prog, source, name, 0, nullptr, nullptr) failed: "
    "NVRTC_ERROR_OUT_OF_MEMORY",
    "std::bad_alloc",
    "cuInit(0) failed: initialization error",
    "cudaGetDeviceCount(&count) failed: system not yet initialized",
    "cudaSetDevice(0) failed: CUDA driver version is insufficient for CUDA runtime version",
    "cudaSetDevice(0) failed: system has unsupported display driver / cuda driver combination",
    "cudaDeviceSynchronize() failed: uncorrectable NVLink error detected during the execution",
    "cudaSetDevice(0) failed: MPS server is not ready to accept new MPS client requests",
]

TIMEOUTS = [
    _METAL + "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)",
    _METAL + "Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)",
    "cudaStreamSynchronize(stream) failed: the launch timed out and was terminated",
]

KERNELS = [
    _METAL + "Caused GPU Address Fault Error (0000000b:kIOGPUCommandBufferCallbackErrorPageFault)",
    _BUILD + "program_source:7:3: error: use of undeclared identifier 'x'",
    "[metal::Device] Unable to load kernel a\nCompiler encountered an internal error",
    "cudaStreamSynchronize(stream) failed: an illegal memory access was encountered",
    "cudaStreamSynchronize(stream) failed: misaligned address",
    "cudaStreamSynchronize(stream) failed: unspecified launch failure",
    "cudaGraphLaunch(exec, stream) failed: too many resources requested for launch",
    "cublasLtMatmul( handle, desc, nullptr) failed with code: 13.",
    "Failed to compile kernel: a.cu(3): error: identifier 'x' is undefined",
    "[metal::malloc] Attempting to allocate 99 bytes which is greater than the maximum",
]
