{{/*
The server's container. dict "root" $ "name" its name. As in the image: user 1000, /cache, and
probe.py, which reads the metrics on loopback. docs/operations/reliability.md explains the probes.
*/}}
{{- define "triton-vllm.server" -}}
{{- $ := .root -}}
- name: {{ .name }}
  image: "{{ $.Values.image.repository }}:{{ $.Values.image.tag | default $.Chart.AppVersion }}"
  imagePullPolicy: {{ $.Values.image.pullPolicy }}
  {{- if eq $.Values.workload "LeaderWorkerSet" }}
  # exec: SIGTERM is for the server.
  command:
    - bash
    - -ec
    - |
      {{- include "triton-vllm.ray" $ | nindent 6 }}
      "${ray[@]}" start --head --port={{ $.Values.multiNode.rayPort }} --include-dashboard=false {{ include "triton-vllm.rayOptions" $ }}
      exec env RAY_ADDRESS="$VLLM_HOST_IP:{{ $.Values.multiNode.rayPort }}" tritonserver "$@"
    - tritonserver
  {{- else }}
  command: [tritonserver]
  {{- end }}
  args: {{ include "triton-vllm.serverArgs" $ }}
  env:
    {{- include "triton-vllm.env" $ | nindent 4 }}
  ports:
    - { name: http, containerPort: 8000 }
    - { name: grpc, containerPort: 8001 }
    - { name: metrics, containerPort: 8002 }
    {{- if $.Values.openai.enabled }}
    - { name: openai, containerPort: {{ $.Values.openai.port }} }
    {{- end }}
  startupProbe:
    exec: { command: [python3, /opt/triton_vllm/probe.py, ready, "--max-age={{ $.Values.probes.maxAgeSeconds }}"] }
    periodSeconds: 5
    timeoutSeconds: 15
    failureThreshold: {{ div (add $.Values.probes.startupSeconds 4) 5 }}
  livenessProbe:
    exec: { command: [python3, /opt/triton_vllm/probe.py, live, "--max-age={{ $.Values.probes.maxAgeSeconds }}"] }
    periodSeconds: 10
    timeoutSeconds: 15
    failureThreshold: 3
  readinessProbe:
    exec: { command: [python3, /opt/triton_vllm/probe.py, ready, "--max-age={{ $.Values.probes.maxAgeSeconds }}"] }
    periodSeconds: 5
    timeoutSeconds: 15
    failureThreshold: 1
  {{- if $.Values.shutdown.preStopSeconds }}
  lifecycle:
    # Until every node has removed this pod from its endpoints.
    preStop: { exec: { command: [sleep, "{{ $.Values.shutdown.preStopSeconds }}"] } }
  {{- end }}
  {{- include "triton-vllm.containerRest" $ | nindent 2 }}
{{- end }}

{{- define "triton-vllm.serverArgs" -}}
{{- concat (list "--model-store=/models" (printf "--exit-timeout-secs=%s" (include "triton-vllm.exitTimeout" .))) .Values.extraArgs | toJson -}}
{{- end }}

{{/* A worker, which joins the leader's Ray cluster. It waits for it: its exit would end the group. */}}
{{- define "triton-vllm.worker" -}}
- name: worker
  image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command:
    - bash
    - -ec
    - |
      {{- include "triton-vllm.ray" . | nindent 6 }}
      until "${ray[@]}" health-check --address="$LWS_LEADER_ADDRESS:{{ .Values.multiNode.rayPort }}"; do sleep 2; done
      exec "${ray[@]}" start --block --address="$LWS_LEADER_ADDRESS:{{ .Values.multiNode.rayPort }}" {{ include "triton-vllm.rayOptions" . }}
  env:
    {{- include "triton-vllm.env" . | nindent 4 }}
  lifecycle:
    # All pods of a group stop at the same time, and the leader's requests need this one to finish.
    preStop: { exec: { command: [sleep, "{{ add .Values.shutdown.preStopSeconds (include "triton-vllm.exitTimeout" .) }}"] } }
  {{- include "triton-vllm.containerRest" . | nindent 2 }}
{{- end }}

{{/* Ray of the execution environment, with the library path of Triton's Python backend. */}}
{{- define "triton-vllm.ray" -}}
environment=/models/vllm/vllm_env
libraries="$environment/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
ray=(env PATH="$environment/bin:$PATH" LD_LIBRARY_PATH="$libraries" python -m ray.scripts.scripts)
{{- end }}

{{/* Half a GiB of /dev/shm: weights and activations do not pass through Ray's store. */}}
{{- define "triton-vllm.rayOptions" -}}
--node-ip-address="$VLLM_HOST_IP" --object-store-memory=536870912 --disable-usage-stats
{{- end }}

{{- define "triton-vllm.env" -}}
# The folder of the code is read-only.
- { name: PYTHONDONTWRITEBYTECODE, value: "1" }
{{- if eq .Values.workload "LeaderWorkerSet" }}
- { name: VLLM_HOST_IP, valueFrom: { fieldRef: { fieldPath: status.podIP } } }
{{- end }}
{{- if .Values.huggingFace.tokenSecret }}
- name: HF_TOKEN
  valueFrom: { secretKeyRef: { name: {{ .Values.huggingFace.tokenSecret }}, key: {{ .Values.huggingFace.tokenSecretKey }} } }
{{- end }}
{{- if .Values.huggingFace.offline }}
- { name: HF_HUB_OFFLINE, value: "1" }
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "triton-vllm.containerRest" -}}
resources: {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: {{ .Values.readOnlyRootFilesystem }}
  capabilities: { drop: [ALL] }
  seccompProfile: { type: RuntimeDefault }
volumeMounts:
  - { name: cache, mountPath: /cache }
  - { name: shm, mountPath: /dev/shm }
  # For the front ends' rendezvous and vLLM's sockets.
  - { name: tmp, mountPath: /tmp }
  - { name: model, mountPath: /models/vllm/vllm_engine_args.json, subPath: vllm_engine_args.json, readOnly: true }
  {{- if include "triton-vllm.modelConfig" . }}
  - { name: model, mountPath: /models/vllm/config.pbtxt, subPath: config.pbtxt, readOnly: true }
  {{- end }}
  {{- if .Values.openai.apiKeysSecret }}
  - { name: api-keys, mountPath: /etc/triton_vllm, readOnly: true }
  {{- end }}
{{- end }}

{{- define "triton-vllm.volumes" -}}
- name: cache
  {{- if .Values.cache.ephemeral }}
  emptyDir: { sizeLimit: {{ .Values.cache.size }} }
  {{- else }}
  persistentVolumeClaim: { claimName: {{ .Values.cache.existingClaim | default (printf "%s-cache" .Release.Name) }} }
  {{- end }}
- name: shm
  emptyDir: { medium: Memory, sizeLimit: {{ .Values.sharedMemory }} }
- name: tmp
  emptyDir: {}
- name: model
  configMap: { name: {{ .Release.Name }}-model }
{{- if .Values.openai.apiKeysSecret }}
- name: api-keys
  secret:
    secretName: {{ .Values.openai.apiKeysSecret }}
    defaultMode: 0440
    items: [{ key: {{ .Values.openai.apiKeysSecretKey }}, path: api_keys }]
{{- end }}
{{- end }}

{{/* A pod's metadata: dict "root" $ "role" its role. A changed model starts new pods. */}}
{{- define "triton-vllm.podMetadata" -}}
labels:
  {{- include "triton-vllm.selector" . | nindent 2 }}
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  checksum/model: {{ cat (include "triton-vllm.engineArgs" .root) (include "triton-vllm.modelConfig" .root) | sha256sum }}
  {{- with .root.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* What a pod and an InferenceService's predictor share. */}}
{{- define "triton-vllm.podRest" -}}
{{- /* A service called vllm would set VLLM_PORT and its like, which vLLM reads as its own. */ -}}
enableServiceLinks: false
automountServiceAccountToken: false
terminationGracePeriodSeconds: {{ include "triton-vllm.gracePeriod" . }}
securityContext:
  runAsNonRoot: true
  fsGroup: 1000
  # A cache has too many files to change them at each start.
  fsGroupChangePolicy: OnRootMismatch
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end }}
