#include "cuda/scale_shift_grad.cuh"
