#include "cuda/linear_grad.cuh"
