// Prints what is said of an error on a GPU: ERROR MAJOR MINOR DRIVER.
#include <cstdio>
#include <cstdlib>

#include "cuda/launch_problem.h"

int main(int, char** argv) {
  const unlearnx::cuda::Machine machine{std::atoi(argv[2]), std::atoi(argv[3]), std::atoi(argv[4]), 13000,
                                        "8.0;9.0+PTX"};
  std::puts(unlearnx::cuda::launch_problem(std::atoi(argv[1]), machine).c_str());
}
