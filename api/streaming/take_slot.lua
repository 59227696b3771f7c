-- Set how many streams of each org or key a process has, unless one of them would then have more
-- than it may in all processes together.
--
-- KEYS: a hash for each org or key: the process, and `<streams>:<when this expires, in ms>`.
-- ARGV: the process, the lease in ms, then for each key the limit (-1: none is checked) and the
-- streams that the process has. Returns the number of the key whose limit is reached, else 0.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i, key in ipairs(KEYS) do
    local most, own = tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
    if most >= 0 then
        local streams = own
        local all = redis.call('HGETALL', key)
        for j = 1, #all, 2 do
            local count, expires = string.match(all[j + 1], '(%d+):(%d+)')
            if tonumber(expires) < now then
                redis.call('HDEL', key, all[j])
            elseif all[j] ~= ARGV[1] then
                streams = streams + tonumber(count)
            end
        end
        if streams > most then
            return i
        end
    end
end
for i, key in ipairs(KEYS) do
    local own = ARGV[2 * i + 2]
    if own == '0' then
        redis.call('HDEL', key, ARGV[1])
    else
        redis.call('HSET', key, ARGV[1], own .. ':' .. string.format('%.0f', now + ARGV[2]))
        redis.call('PEXPIRE', key, ARGV[2])
    end
end
return 0
