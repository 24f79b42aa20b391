/* sorl.h is C99, and a C program links against the library. */
#include <sorl_fast/sorl.h>
#include <stdio.h>
#include <string.h>

int main(void) {
  char error[64] = "";
  sorl_policy *policy = NULL;
  sorl_session *session = NULL;
  sorl_options options;
  int32_t code = sorl_policy_load("", &policy, error, sizeof error);
  sorl_options_init(&options);
  if (sorl_abi_version() != SORL_ABI_VERSION || code != SORL_ERROR_READ || policy != NULL) return 1;
  if (strlen(error) == 0 || options.struct_size != sizeof options || options.threads != 1) return 1;
  if (sorl_session_create(policy, &options, &session, NULL, 0) != SORL_ERROR_ARGUMENT) return 1;
  printf("C99: all passed\n");
  return 0;
}
