-- One line for the script: answers, answers a second, median and p99 in milliseconds, and what was no success.
function done(summary, latency)
    local e = summary.errors
    print(string.format("figures %d %.0f %.2f %.2f %d", summary.requests, summary.requests * 1e6 / summary.duration,
        latency:percentile(50) / 1000, latency:percentile(99) / 1000, e.status + e.connect + e.read + e.write + e.timeout))
end
