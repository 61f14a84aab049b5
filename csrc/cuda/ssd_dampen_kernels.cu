#include "cuda/ssd_dampen.cuh"
