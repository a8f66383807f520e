-- fenced
-- Make the stream and its group where they are absent. KEYS: lease, stream, books.
-- ARGV: token, group, committed position ("ms-seq"), that position's ms, accepted events as the lake knows them.
-- A Redis that lost its memory starts behind the committed position: ids must not run backwards, so the stream's last
-- id is set to whichever is later, the clock or the position. Nobody can append before: append needs the stream.
local function group_exists()
  if redis.call('EXISTS', KEYS[2]) == 0 then return false end
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
    if group[2] == ARGV[2] then return true end
  end
  return false
end
if group_exists() then
  return 0
end
local fresh = redis.call('EXISTS', KEYS[2]) == 0
redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[2], ARGV[3], 'MKSTREAM')
if fresh then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  if tonumber(ARGV[4]) >= now then
    redis.call('XSETID', KEYS[2], ARGV[3])
  end
  redis.call('HSET', KEYS[3], 'accepted', ARGV[5])
end
return 1
