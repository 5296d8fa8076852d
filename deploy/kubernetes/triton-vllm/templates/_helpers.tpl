{{/* Labels that select the pods of a role: dict "root" $ "role" "server" or "worker". */}}
{{- define "triton-vllm.selector" -}}
app.kubernetes.io/name: triton-vllm
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{/* Labels of every object. */}}
{{- define "triton-vllm.labels" -}}
app.kubernetes.io/name: triton-vllm
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/*
Triton's exit timeout in seconds. The model (config/server_options.py) keeps 2 for the end of each front end
and 7 more, so the whole drain fits, with 1 to spare and 3 for each further front end.
*/}}
{{- define "triton-vllm.exitTimeout" -}}
{{- add .Values.shutdown.drainSeconds (mul 5 .Values.frontEnds) 5 -}}
{{- end }}

{{/* Seconds until the kubelet kills: removal of the endpoints, Triton's exit timeout, 10 for its end. */}}
{{- define "triton-vllm.gracePeriod" -}}
{{- add .Values.shutdown.preStopSeconds (include "triton-vllm.exitTimeout" .) 10 -}}
{{- end }}

{{/* "true" where a pod on another node could not mount the cache. */}}
{{- define "triton-vllm.cacheOfOneNode" -}}
{{- if not (or .Values.cache.ephemeral (has "ReadWriteMany" .Values.cache.accessModes)) -}}true{{- end -}}
{{- end }}

{{/* vllm_engine_args.json. */}}
{{- define "triton-vllm.engineArgs" -}}
{{- $args := deepCopy .Values.engineArgs -}}
{{- $serving := deepCopy (default dict $args.serving) -}}
{{- $_ := set $serving "drain_timeout_seconds" .Values.shutdown.drainSeconds -}}
{{- if .Values.openai.enabled -}}
{{- $openai := dict "port" .Values.openai.port "host" "0.0.0.0" "drain_timeout_seconds" .Values.shutdown.drainSeconds -}}
{{- if .Values.openai.apiKeysSecret -}}
{{- $_ := set $openai "api_keys_file" "/etc/triton_vllm/api_keys" -}}
{{- end -}}
{{- $_ := set $serving "openai" (merge $openai (default dict $serving.openai)) -}}
{{- end -}}
{{- $_ := set $args "serving" $serving -}}
{{- if and (eq .Values.workload "KServe") .Values.kserve.storageUri -}}
{{- $_ := set $args "model" "/mnt/models" -}}
{{- end -}}
{{- toPrettyJson $args -}}
{{- end }}

{{/*
The repository's config.pbtxt, with the changes of gen_vllm_env.sh and of the values. Empty if the
values change nothing: then the image's file is used.
*/}}
{{- define "triton-vllm.modelConfig" -}}
{{- if or (gt (int .Values.frontEnds) 1) .Values.modelParameters -}}
{{- $text := .Files.Get "files/config.pbtxt" -}}
{{- $text = replace "/vllm_env.tar.gz" "/vllm_env" $text -}}
{{- $text = replace "instance_group [ { count: 1 " (printf "instance_group [ { count: %d " (int .Values.frontEnds)) $text -}}
{{- $text -}}
{{- range $key, $value := .Values.modelParameters }}

parameters {
  key: {{ $key | quote }}
  value { string_value: {{ $value | quote }} }
}
{{- end }}
{{- end }}
{{- end }}

{{/* Checks that a JSON schema cannot express. */}}
{{- define "triton-vllm.check" -}}
{{- $serving := default dict .Values.engineArgs.serving -}}
{{- if hasKey $serving "drain_timeout_seconds" -}}
{{- fail "engineArgs.serving.drain_timeout_seconds: set shutdown.drainSeconds instead, from which the grace period follows" -}}
{{- end -}}
{{- if and (hasKey $serving "openai") (not .Values.openai.enabled) -}}
{{- fail "engineArgs.serving.openai: set openai.enabled, which also opens the port; further options may be set here" -}}
{{- end -}}
{{- if and .Values.openai.enabled (contains ";" (default "" .Values.modelParameters.gpu_device_ids)) -}}
{{- fail "openai: several engines in a pod have a port each, and a service has one: use replicas instead of gpu_device_ids" -}}
{{- end -}}
{{- range .Values.extraArgs -}}
{{- if regexMatch "^--(exit-timeout-secs|allow-metrics|allow-http|(http|grpc|metrics)-(port|address)|model-(store|repository))(=|$)" . -}}
{{- fail (printf "extraArgs: %s: probes, services or the grace period rely on the chart's own" .) -}}
{{- end -}}
{{- end -}}
{{- $several := or (gt (int .Values.replicas) 1) (ne .Values.autoscaling.kind "none") (eq .Values.workload "LeaderWorkerSet") -}}
{{- if and $several (include "triton-vllm.cacheOfOneNode" .) -}}
{{- fail "cache: several pods cannot share a ReadWriteOnce volume: set cache.accessModes to [ReadWriteMany], or cache.ephemeral to true" -}}
{{- end -}}
{{- if and .Values.cache.ephemeral .Values.cache.existingClaim -}}
{{- fail "cache: ephemeral and existingClaim exclude each other" -}}
{{- end -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{- fail "autoscaling: minReplicas is above maxReplicas" -}}
{{- end -}}
{{- if eq .Values.workload "LeaderWorkerSet" -}}
{{- if ne (toString .Values.engineArgs.distributed_executor_backend) "ray" -}}
{{- fail "workload LeaderWorkerSet joins its pods by Ray: set engineArgs.distributed_executor_backend to ray" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.kserve.storageUri (ne .Values.workload "KServe") -}}
{{- fail "kserve.storageUri: only for workload KServe" -}}
{{- end -}}
{{- end }}
