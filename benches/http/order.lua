-- GET /order/{id}, the orders of a file in turn.
-- wrk -s order.lua URL -- TOKEN FILE
local requests, at = {}, 0

function init(args)
    local headers = { ["Host"] = wrk.host .. ":" .. wrk.port, ["Authorization"] = "Bearer " .. args[1] }
    for id in io.lines(args[2]) do
        requests[#requests + 1] = wrk.format("GET", "/order/" .. id, headers)
    end
end

function request()
    at = at % #requests + 1
    return requests[at]
end

dofile("report.lua")
