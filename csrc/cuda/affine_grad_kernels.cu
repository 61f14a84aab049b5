#include "cuda/affine_grad.cuh"
