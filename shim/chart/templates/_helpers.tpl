{{- define "orlop-csi.labels" -}}
app.kubernetes.io/name: orlop-csi
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "orlop-csi.selector" -}}
app.kubernetes.io/name: orlop-csi
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "orlop-csi.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- /* No privilege at all: for all that only talks. */ -}}
{{- define "orlop-csi.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* A sidecar of the controller: dict with `root`, `name`, `image`, `args`. */ -}}
{{- define "orlop-csi.sidecar" -}}
- name: {{ .name }}
  image: {{ .image }}
  imagePullPolicy: {{ .root.Values.sidecars.pullPolicy }}
  args:
    - --csi-address=/csi/csi.sock
    {{- range .args }}
    - {{ . }}
    {{- end }}
  securityContext:
    {{- include "orlop-csi.unprivileged" .root | nindent 4 }}
  resources:
    {{- toYaml .root.Values.sidecars.resources | nindent 4 }}
  volumeMounts:
    - name: socket
      mountPath: /csi
{{- end -}}
