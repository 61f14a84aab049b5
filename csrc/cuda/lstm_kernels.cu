#include "cuda/lstm.cuh"
