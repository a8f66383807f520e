-- How much of a partition nobody has read yet. KEYS: stream, books. ARGV: group.
-- Reply: unread entries, events in them, age of the oldest in ms, bytes of the whole stream, events read so far.
-- A server before 7.0 counts no lag: there the entries are what lies in the stream and is not pending, which is never too little.
if redis.call('EXISTS', KEYS[1]) == 0 then
  return {0, 0, 0, 0, 0}
end
local bytes = redis.call('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', 5) or 0
local accepted, read = unpack(redis.call('HMGET', KEYS[2], 'accepted', 'read'))
accepted, read = tonumber(accepted) or 0, tonumber(read) or 0
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local told = {}
  for i = 1, #group, 2 do
    told[group[i]] = group[i + 1]
  end
  if told['name'] == ARGV[1] then
    local oldest = redis.call('XRANGE', KEYS[1], '(' .. told['last-delivered-id'], '+', 'COUNT', 1)[1]
    if not oldest then
      return {0, 0, 0, bytes, read}
    end
    local time = redis.call('TIME')
    local age = time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(string.match(oldest[1], '^(%d+)'))
    local lag = tonumber(told['lag'] or nil) or redis.call('XLEN', KEYS[1]) - told['pending']
    return {math.max(lag, 1), math.max(accepted - read, 0), math.max(age, 0), bytes, read}
  end
end
return {redis.call('XLEN', KEYS[1]), math.max(accepted - read, 0), 0, bytes, read}
