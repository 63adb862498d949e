-- POST /checkout, each request an order of its own: the same body under a fresh idempotency key.
-- wrk -s checkout.lua URL -- TOKEN BUYER RUN
local head, tail, count = nil, nil, 0

function init(args)
    local token, buyer, run = args[1], args[2], args[3]
    local body = '{"sku_id":"sku-e2e","buyer_id":"' .. buyer .. '",'
        .. '"payment_method":{"provider":"stripe","payment_intent":"pi_1"},'
        .. '"delivery_preferences":{"mode":"marketplace-managed"},"order_metadata":{"note":"for Ann"}}'
    local request = wrk.format("POST", "/checkout", {
        ["Host"] = wrk.host .. ":" .. wrk.port,
        ["Authorization"] = "Bearer " .. token,
        ["Content-Type"] = "application/json",
        ["Idempotency-Key"] = "KEY",
    }, body)
    local at = request:find("Idempotency-Key: KEY", 1, true) + #"Idempotency-Key: "
    head, tail = request:sub(1, at - 1) .. run .. "-", request:sub(at + 3)
end

-- One thread of wrk: the keys of several would meet.
function request()
    count = count + 1
    return head .. count .. tail
end

dofile("report.lua")
