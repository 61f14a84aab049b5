#include "cuda/softmax_linear.cuh"
