-- after: fence, run, incarnation, opened, add
-- Append an empty entry where none came for a while, so that time passes here too. KEYS: lease, stream, books. ARGV: token, interval in ms.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local info = redis.call('XINFO', 'STREAM', KEYS[2])
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then
    local last = tonumber(string.match(info[i + 1], '^(%d+)'))
    if now - last < tonumber(ARGV[2]) then
      return false
    end
  end
end
return add(KEYS[2], 't', '1', 'i', redis.call('HGET', KEYS[3], 'opened'))
