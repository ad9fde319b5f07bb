/* services.c - every RPC of the program, one line each. */
#include "server/services.h"

const mx_method mx_methods[] = {
    {"/merx.v1.Generation/Generate", MX_METHOD_WAITS, mx_generate_begin},
    {"/merx.v1.Generation/Stream", MX_METHOD_WAITS, mx_stream_begin},
    {"/merx.v1.Generation/GenerateBatch", MX_METHOD_WAITS, mx_batch_begin},
    {"/merx.v1.Generation/Tokenize", 0, mx_tokenize_begin},
    {"/merx.v1.Generation/Detokenize", 0, mx_detokenize_begin},
    {"/merx.v1.Generation/ListModels", 0, mx_list_models_begin},
    {"/merx.v1.Embeddings/Embed", MX_METHOD_WAITS, mx_embed_begin},
    {"/merx.v1.Embeddings/Classify", MX_METHOD_WAITS, mx_classify_begin},
    {"/merx.v1.Training/Submit", 0, mx_training_submit_begin},
    {"/merx.v1.Training/Get", 0, mx_training_get_begin},
    {"/merx.v1.Training/List", 0, mx_training_list_begin},
    {"/merx.v1.Training/Watch", MX_METHOD_WAITS, mx_training_watch_begin},
    {"/merx.v1.Training/Cancel", 0, mx_training_cancel_begin},
    {"/merx.v1.Models/Load", MX_METHOD_WAITS, mx_load_begin},
    {"/merx.v1.Experiments/CreateExperiment", MX_METHOD_WAITS, mx_experiment_create_begin},
    {"/merx.v1.Experiments/GetExperiment", MX_METHOD_WAITS, mx_experiment_get_begin},
    {"/merx.v1.Experiments/ListExperiments", 0, mx_experiment_list_begin},
    {"/merx.v1.Experiments/Select", MX_METHOD_WAITS, mx_experiment_select_begin},
    {"/merx.v1.Experiments/ReportOutcome", MX_METHOD_WAITS, mx_experiment_outcome_begin},
    {"/merx.v1.Experiments/Promote", MX_METHOD_WAITS, mx_experiment_promote_begin},
    {"/merx.v1.Experiments/Pause", MX_METHOD_WAITS, mx_experiment_pause_begin},
    {"/grpc.health.v1.Health/Check", MX_METHOD_ALWAYS, mx_health_check_begin},
    {"/grpc.health.v1.Health/Watch", MX_METHOD_ALWAYS | MX_METHOD_WAITS, mx_health_watch_begin},
    {"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", MX_METHOD_ALWAYS | MX_METHOD_WAITS | MX_METHOD_BIDI,
     mx_reflection_begin},
    {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
     MX_METHOD_ALWAYS | MX_METHOD_WAITS | MX_METHOD_BIDI, mx_reflection_begin},
};
const int mx_methods_count = sizeof mx_methods / sizeof *mx_methods;
