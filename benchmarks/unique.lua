-- The load of benchmarks/memory.py: no two requests have a prompt or a user in common.
-- Usage: wrk ... -s unique.lua URL -- KEY RUN; the outcome is one JSON line, as of wrk.lua.

local made, run = 0, 0

function init(args)
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Authorization"] = "Bearer " .. args[1]
  run = args[2]
end

function request()
  made = made + 1
  local name = run .. "-" .. made
  return wrk.format(nil, nil, nil, string.format(
    '{"model":"mock","user":"user-%s","max_tokens":32,"messages":[{"role":"user",' ..
    '"content":"%s asks what nobody has asked before, so that no prefix is known: %s"}]}',
    name, name, name))
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\nOUTCOME {"duration_us": %d, "requests": %d, "bytes": %d, "p50_us": %d, "p99_us": %d, ' ..
    '"max_us": %d, "connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}\n',
    summary.duration, summary.requests, summary.bytes,
    latency:percentile(50), latency:percentile(99), latency.max,
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
