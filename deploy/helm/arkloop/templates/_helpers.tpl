{{- define "arkloop.name" -}}
{{- if contains "arkloop" .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-arkloop" .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{- define "arkloop.selector" -}}
app.kubernetes.io/name: arkloop
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "arkloop.labels" -}}
{{ include "arkloop.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "arkloop.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* The security context of every container. */}}
{{- define "arkloop.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "arkloop.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Of every pod: no token of Kubernetes, which the service never talks to. */}}
{{- define "arkloop.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- include "arkloop.podSecurity" . | nindent 2 }}
{{- end -}}

{{/* Settings of web and worker pods; those that are secrets come from the Secret. */}}
{{- define "arkloop.env" -}}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- if .Values.routes }}
- {name: ARKLOOP_ROUTES, value: /etc/arkloop/routes.yaml}
{{- end }}
{{- if .Values.metrics.enabled }}
- {name: ARKLOOP_METRICS_PORT, value: {{ .Values.metrics.port | quote }}}
- {name: ARKLOOP_METRICS_HOST, value: 0.0.0.0}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
Variables of the migration. Where it has a Secret of its own, that has the owner's URL: an entry of
the same name would have precedence.
*/}}
{{- define "arkloop.migrateEnv" -}}
{{- with .Values.settings.ARKLOOP_RETENTION_DAYS }}
# For how long partitions of events are made, if any are.
- {name: ARKLOOP_RETENTION_DAYS, value: {{ . | quote }}}
{{- end }}
{{- $ofOwner := list "ARKLOOP_OWNER_DATABASE_URL" "ARKLOOP_DIRECT_DATABASE_URL" }}
{{- range .Values.extraEnv }}
{{- if not (and $.Values.migrate.existingSecret (has .name $ofOwner)) }}
- {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "arkloop.envFrom" -}}
- secretRef: {name: {{ required "existingSecret: the name of a Secret with ARKLOOP_DATABASE_URL and others" .Values.existingSecret }}}
{{- end -}}

{{- define "arkloop.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .Values.files.existingClaim }}
- {name: files, mountPath: /files}
{{- end }}
{{- if .Values.routes }}
- {name: routes, mountPath: /etc/arkloop, readOnly: true}
{{- end }}
{{- end -}}

{{- define "arkloop.volumes" -}}
{{- if not (or .Values.files.existingClaim (hasKey .Values.settings "ARKLOOP_S3_BUCKET")) }}
{{- fail "files: set settings.ARKLOOP_S3_BUCKET, or files.existingClaim to a claim that many pods can write" }}
{{- end }}
- {name: tmp, emptyDir: {}}
{{- if .Values.files.existingClaim }}
- {name: files, persistentVolumeClaim: {claimName: {{ .Values.files.existingClaim }}}}
{{- end }}
{{- if .Values.routes }}
- {name: routes, configMap: {name: {{ include "arkloop.name" . }}-routes}}
{{- end }}
{{- end -}}

{{- define "arkloop.annotations" -}}
{{- if .Values.routes }}
checksum/routes: {{ .Values.routes | sha256sum }}
{{- end }}
{{- if .Values.metrics.enabled }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .Values.metrics.port | quote }}
{{- end }}
{{- end -}}

{{/* Pods of one kind are spread over machines, if there are several. */}}
{{- define "arkloop.spread" -}}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "arkloop.selector" .root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/*
The workers that run, where leaving `replicas` out would stop all but one: a patch deletes what the
manifest before had, and 1 is the default. It had it before the autoscaler was there, and has it ever
since, as the annotation says. Other manifests leave it to the autoscaler. Empty if rendered offline.
*/}}
{{- define "arkloop.keptReplicas" -}}
{{- if .Values.worker.autoscaling.enabled }}
{{- $name := printf "%s-worker" (include "arkloop.name" .) }}
{{- $scaler := lookup "autoscaling/v2" "HorizontalPodAutoscaler" .Release.Namespace $name }}
{{- with lookup "apps/v1" "Deployment" .Release.Namespace $name }}
{{- if or (not $scaler) (index (.metadata.annotations | default dict) "arkloop/keeps-replicas") }}
{{- .spec.replicas }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
