-- How far behind the holder of a partition is. KEYS: stream, books. ARGV: group.
-- Reply: age of the oldest unread entry in ms, unread events, bytes of the stream, events read so far.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {0, 0, 0, 0}
end
local after
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  if group[2] == ARGV[1] then
    for i = 1, #group, 2 do
      if group[i] == 'last-delivered-id' then after = group[i + 1] end
    end
  end
end
local age = 0
local first = after and redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', 1)[1]
if first then
  local time = redis.call('TIME')
  age = math.max(0, time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(string.match(first[1], '^%d+')))
end
local accepted, read = unpack(redis.call('HMGET', KEYS[2], 'accepted', 'read'))
accepted, read = tonumber(accepted) or 0, tonumber(read) or 0
return {age, first and math.max(0, accepted - read) or 0, redis.call('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', 5) or 0, read}
