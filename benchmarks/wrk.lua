-- The load of benchmarks/wrk.py: one JSON body, posted again and again; the outcome as one JSON line.
-- Usage: wrk ... -s wrk.lua URL -- BODY KEY

function init(args)
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Authorization"] = "Bearer " .. args[2]
  wrk.body = args[1]
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
